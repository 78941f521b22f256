# %% [markdown]
# # An ablation that ends in an answer
#
# Several runs with one thing changed, over seeds, in a ledger in which each cell ends exactly once; then paired differences from the baseline with 95% intervals, and a verdict where there are seeds enough for one. It calls the library and defines nothing.
#
# On Colab: fill in the fields and run all cells. Where the first cell asks for it, restart the session once and run all cells again.

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
# @title The sweep
ablation = 'depth_width'  # @param ["depth_width", "lora_rank", "optimizer_rate", "packing", "positions", "quantization", "tokenizer", "width_rate", "window"]
workdir = 'sweeps/colab'  # @param {type: "string"}
workers = 1  # @param {type: "integer"}

from pathlib import Path
from research.sweep.running import load_sweep

argument = os.environ.get('GRAFT_NOTEBOOK_ARG', '')  # 'smoke' runs these cells in seconds
config = f'{root}/configs/ablations/{ablation}.py:{argument}'
workdir = Path(os.environ.get('GRAFT_NOTEBOOK_WORKDIR', workdir))
sweep = load_sweep(config)
sweep.points, sweep.seeds

# %% [markdown]
# Every run has its folder in `cells/`. Run the cell again to go on after a stop; nothing that has ended is run twice.

# %%
from research.sweep.running import run_sweep

found = run_sweep(config, workdir, workers)

# %% [markdown]
# Level minus baseline, a dot a seed. Below six seeds there is no verdict, and it says how many more are needed.

# %%
from IPython.display import HTML, SVG
from research.sweep.pictures import interval_svg

metric = next(iter(sweep.metrics))
SVG(interval_svg([one for one in found if one.metric == metric]))

# %%
from research.sweep.answer import headline

print('\n'.join(headline(found, metric)))

# %% [markdown]
# Which runs of this and of other sweeps are known, by any field of their configs.

# %%
from research.sweep.query import answer

print(answer(workdir, "state == 'done'", by='layers', metric=metric))

# %%
HTML((workdir / 'report.html').read_text())
