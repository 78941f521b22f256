# %% [markdown]
# # Graft quickstart
#
# A small LLaMA-type model from scratch on the source files of Python's standard library: the main job of the README, in a notebook. It calls the library and defines nothing.
#
# On Colab: choose a runtime with a GPU or TPU if you like, fill in the fields, and run all cells. Where the first cell asks for it, restart the session once and run all cells again.

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
workdir = 'runs/colab'  # @param {type: "string"}
keep_on_drive = False  # @param {type: "boolean"}
# Colab's disk goes with the session. On Drive the run stays, and this notebook resumes it.
from research.downloads.drive import on_drive

if keep_on_drive:
    workdir = on_drive(workdir)

from pathlib import Path
from configs.quickstart import get_config
from research.run.resolve import from_config

config = get_config(os.environ.get('GRAFT_NOTEBOOK_ARG', ''))  # 'smoke' runs these cells in seconds
workdir = Path(os.environ.get('GRAFT_NOTEBOOK_WORKDIR', workdir))
experiment = from_config(config)
experiment.model

# %% [markdown]
# Training writes a run directory: `metrics.jsonl`, TensorBoard events, checkpoints, samples and `report.html`. Run the cell again to resume.

# %%
from research.train import train

train(experiment, workdir)

# %% [markdown]
# Loss of the training batches, in nats per token. Below it the last evaluation on held-out files: `eval/bits_per_byte`, beside what `gzip -9` needs for the same bytes.

# %%
from IPython.display import HTML, SVG
from research.training.metrics import read_rows
from research.training.plot import curve_svg

rows = read_rows(workdir / 'metrics.jsonl')
losses = [(row['step'], row['loss']) for row in rows if 'loss' in row]
SVG(curve_svg({'train loss': tuple(zip(*losses))}))

# %%
evaluations = [row for row in rows if 'eval/bits_per_byte' in row]
evaluations[-1]

# %% [markdown]
# The model continues a prompt.

# %%
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.run.opened import open_run

run = open_run(workdir)
[continuation] = generate(run.model, run.params, run.tokenizer, ['def '], SamplingConfig(max_tokens=64))
print(continuation.prompt + continuation.text)

# %%
HTML((workdir / 'report.html').read_text())
