# %% [markdown]
# # Pretraining on a TPU, planned first
#
# Does it fit, and how long does a step take at best? Then the run. A v5e-1 of Colab holds the model below; any other device says what it holds. It calls the library and defines nothing.
#
# On Colab: choose a runtime with a TPU, fill in the fields, and run all cells. Where the first cell asks for it, restart the session once and run all cells again.

# %%
# @title Checkout and packages
repository = ''  # @param {type: "string"}
# Colab opens a notebook without its checkout: give the repository's address, and it is cloned into graft/.
import logging, os, subprocess, sys

logging.basicConfig(format='%(levelname)s %(message)s')  # warnings as commands print them

folders = [folder for folder in ('.', '..', 'graft') if os.path.exists(f'{folder}/research/train.py')]
if not folders and not repository:
    raise ValueError("no checkout is here; set repository to its address, such as https://github.com/OWNER/graft")
if not folders:
    subprocess.run(['git', 'clone', '--quiet', repository, 'graft'], check=True)
root = folders[0] if folders else 'graft'
sys.path.insert(0, os.path.abspath(root))

from research.devices import nodes, runtime
from research.downloads import requirements

print(runtime.describe())  # and what will be slow on it
print(requirements.install(root, nodes.extra()))  # for the TPU or card that this runtime has

# %%
# @title The run
model = 'smollm2_135m'  # @param {type: "string"}
data = 'stdlib'  # @param {type: "string"}
sequence_length = 2048  # @param {type: "integer"}
batch_size = 8  # @param {type: "integer"}
steps = 100  # @param {type: "integer"}
workdir = 'runs/pretrain'  # @param {type: "string"}
keep_on_drive = False  # @param {type: "boolean"}
# Colab's disk goes with the session. On Drive the run stays, and this notebook resumes it.
from research.downloads.drive import on_drive

if keep_on_drive:
    workdir = on_drive(workdir)

from pathlib import Path
from configs.pretrain import get_config
from research.run.resolve import from_config

smoke = os.environ.get('GRAFT_NOTEBOOK_ARG', '')  # 'smoke' runs these cells in seconds
config = get_config(f'model={model},data={data},{smoke}')
if not smoke:
    config.data.sequence_length = sequence_length
    config.data.batch_size = batch_size
    config.train.steps = steps
workdir = Path(os.environ.get('GRAFT_NOTEBOOK_WORKDIR', workdir))
experiment = from_config(config)
experiment.model

# %% [markdown]
# The plan for a v5e-1, by closed forms, whatever this runtime has. `python -m research.fit --target=v5e:1x1` asks the TPU's own compiler instead.

# %%
from research.fit.estimate import estimate
from research.fit.targets import parse_target

target = parse_target('v5e:1x1')
planned = estimate(experiment, target)
print(f'{planned.total / 2**30:.1f} GiB of {target.capacity_bytes / 2**30:.0f}')
planned

# %% [markdown]
# And for the device that is here.

# %%
from research.fit.at_hand import predict

predict(experiment).line

# %%
from research.train import train

train(experiment, workdir)

# %%
from IPython.display import HTML, SVG
from research.training.metrics import read_rows
from research.training.plot import curve_svg

rows = read_rows(workdir / 'metrics.jsonl')
losses = [(row['step'], row['loss']) for row in rows if 'loss' in row]
SVG(curve_svg({'train loss': tuple(zip(*losses))}))

# %%
HTML((workdir / 'report.html').read_text())
