"""The kernels below a model as works of a card: products, grouped products, attention."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.bench.card_works import Work
from research.models.config import ModelConfig
from research.ops.attention import Visibility, attend
from research.ops.einsum import einsum
from research.ops.grouped import grouped
from research.weights.quantized import quantize_array

Run = Callable[[], Any]
GROUPS = 8


def product(work: Work, config: ModelConfig, variant: str) -> Run:
    """Tokens times the widest matrix of a layer, in bfloat16 or quantized, and the gradient by the
    tokens."""
    w = jax.random.normal(jax.random.key(0), (config.d_model, config.d_ff), jnp.bfloat16)
    weight = quantize_array(w, work.format, inputs=1) if work.format else w
    x = jax.random.normal(jax.random.key(1), (work.rows, work.tokens, config.d_model), w.dtype)

    def _multiply(x, w):
        return einsum("BTD,DF->BTF", x, w)

    def _both(x, w):
        y, pull = jax.vjp(lambda x: _multiply(x, w), x)
        return y, pull(y)

    return _ready(_both if work.backward else _multiply, x, weight)


def grouped_product(work: Work, config: ModelConfig, variant: str) -> Run:
    """Rows in uneven groups, each times the matrix of its expert, and both gradients."""
    shape = GROUPS, config.d_model, config.d_ff
    w = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (work.tokens, config.d_model), jnp.bfloat16)
    # Groups of one to eight parts of 36.
    edges = np.cumsum(np.arange(GROUPS + 1)) * work.tokens // (GROUPS * (GROUPS + 1) // 2)
    sizes = jnp.asarray(np.diff(edges), jnp.int32)

    def _grouped(x, w, sizes):
        return grouped(x, w, sizes, implementation=variant or "auto")

    def _both(x, w, sizes):
        y, pull = jax.vjp(lambda x, w: _grouped(x, w, sizes), x, w)
        return y, pull(y)

    return _ready(_both if work.backward else _grouped, x, w, sizes)


def attention(work: Work, config: ModelConfig, variant: str) -> Run:
    """A layer's attention over packed rows and its gradients, by the kernel that a run takes or by
    the one that `variant` names."""
    B, T, H = work.rows, work.tokens, work.head_size or config.head_size
    heads = config.heads, config.kv_heads, config.kv_heads
    made = [jax.random.normal(jax.random.key(n), (B, T, N, H)) for n, N in enumerate(heads)]
    queries_keys_values = [x.astype(jnp.bfloat16) for x in made]
    length = T // (work.documents or 1)
    at = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
    tokens = at % length, at % length, at // length + 1, at // length + 1
    promises = dict(packed=True, documents=work.documents)
    if variant == "cudnn" and not work.documents:
        promises["single"] = True

    def _attend(q, k, v, tokens):
        seen = Visibility(*tokens, causal=True, window=work.window, **promises)
        return attend(q, k, v, seen, scale=H**-0.5, implementation=variant or "auto")

    def _loss(*operands):
        return jnp.sum(_attend(*operands).astype(jnp.float32))

    gradient = jax.grad(_loss, argnums=(0, 1, 2))
    return _ready(gradient if work.backward else _attend, *queries_keys_values, tokens)


def _ready(function: Callable, *operands: Any) -> Run:
    """A call of the compiled function that waits for its result."""
    # Operands are arguments and not constants, which XLA might fold.
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*operands))
