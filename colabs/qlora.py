# %% [markdown]
# # QLoRA of a chat model on a small GPU
#
# SmolLM2 in four bits with adapters of rank 16, trained on conversations, saved, and exported for peft. A T4 is enough, and so is a CPU with patience. It calls the library and defines nothing.
#
# On Colab: choose a runtime with a GPU, fill in the fields, and run all cells. Where the first cell asks for it, restart the session once and run all cells again.

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
data = ''  # @param {type: "string"}
# A .jsonl file of {"messages": [{"role", "content"}, ...]}; empty takes 999 rows of Alpaca's.
steps = 40  # @param {type: "integer"}
workdir = 'runs/qlora'  # @param {type: "string"}
keep_on_drive = False  # @param {type: "boolean"}
# Colab's disk goes with the session. On Drive the run stays, and this notebook resumes it.
from research.downloads.drive import on_drive

if keep_on_drive:
    workdir = on_drive(workdir)

from pathlib import Path
from configs.finetune import get_config
from research.run.resolve import from_config

argument = f'task=chat,method=qlora,model={model}' + f',data={data}' * bool(data)
argument = os.environ.get('GRAFT_NOTEBOOK_ARG', argument)  # the tests set a tiny one
config = get_config(argument)
config.init = os.environ.get('GRAFT_NOTEBOOK_SOURCE', config.init)
config.train.steps = min(steps, config.train.steps)
workdir = Path(os.environ.get('GRAFT_NOTEBOOK_WORKDIR', workdir))
experiment = from_config(config)
experiment.lora

# %% [markdown]
# What this device will have to hold, before anything is allocated.

# %%
from research.fit.at_hand import predict

predict(experiment).line

# %% [markdown]
# Four bits hold the base; gradients, moments and checkpoints are those of the adapters alone. Run the cell again to resume.

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

# %% [markdown]
# The adapters alone, in a folder that peft reads, certified number by number.

# %%
from research.interop.convert import export_adapter

certificate = export_adapter(workdir, workdir / 'peft')
sorted(file.name for file in (workdir / 'peft').iterdir())

# %%
HTML((workdir / 'report.html').read_text())
