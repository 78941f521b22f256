"""The names of a step's parts, as a profile shows them.

`scope(NAME)` gives its name to the operations inside; XLA carries it in an operation's metadata
(`op_name`) through fusion, also to those of the backward pass and of recomputation. Scopes nest:
"layers/attention/scores". `parts_of` reads them back from the HLO or from a profiler's events.
"""

import re
from typing import Any

import jax

SCOPES = {
    "embed": "tables of tokens, positions and token types, and T5's offsets of scores by distance",
    "encoder": "that of an encoder-decoder, or of images; its parts are named as the decoder's",
    "layers": "a stack's loop: a layer's share of the parameters, what its backward pass keeps",
    "norm": "RMS and layer norms, of branches, of query and key heads, the last one",
    "attention": "self-attention with its norm and residual sum",
    "cross": "attention over an encoder's text, the same parts as in attention",
    "projections": "attention: queries, keys and values",
    "rotation": "attention: rotary positions of queries and keys",
    "scores": "attention: softmax(q k) v, by a kernel or by XLA",
    "output": "attention: the product of the heads' results",
    "mlp": "a dense feed-forward layer with its norm and residual sum, or a shared expert",
    "moe": "a mixture of experts with its norm and residual sum",
    "routing": "experts: the router, its choice and loss, sorting of tokens, summing of results",
    "experts": "experts: the products of groups of tokens",
    "adapter": "products of LoRA, factors of IA3, bottlenecks",
    "dequantize": "decoding of quantized weights to an array",
    "dropout": "drawing and applying masks",
    "head": "products with the table of words, or of classes, and their gradients",
    "loss": "softmax over the words, the loss and its gradient by the logits",
    "optimizer": "gradients to updated parameters: scale, norm, clipping, moments, update",
}
# The transformations that JAX writes around a name, as in "transpose(jvp(attention))". The name in
# "jit(norm)" is that of a function.
_NAME = re.compile(r"(?:(?:jvp|transpose|vmap|checkpoint|remat|rematted_computation)\()*(\w+)\)*")


def scope(name: str) -> Any:
    """A context manager, or a decorator of a function, that names the operations inside. ValueError
    for a name that `SCOPES` lacks."""
    if name not in SCOPES:
        raise ValueError(f"scope({name!r}) is not documented; add it to SCOPES in scopes.py")
    return jax.named_scope(name)


def parts_of(op_name: str) -> tuple[str, ...]:
    """The scopes around an operation, outermost first, by its `op_name`; () outside of all.

    >>> parts_of("jit(step)/transpose(jvp(layers))/while/body/attention/scores/dot_general")
    ('layers', 'attention', 'scores')
    """
    names = [_NAME.fullmatch(entry) for entry in op_name.split("/")]
    return tuple(match[1] for match in names if match and match[1] in SCOPES)
