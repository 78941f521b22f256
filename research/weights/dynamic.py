"""Products of 8-bit weights with activations that are quantized to 8 bits as they come, each token
with its own scale.

    int8   y = s_x s_w sum(x8 w8),   s_x = max |x| / 127 over a token's inputs, the sum in int32
    fp8    the same with 448, the largest float8_e4m3fn, and a float32 sum (arXiv:2209.05433)

The weight has one scale for each output, so both scales stand outside the sum and the chip
multiplies the codes. Where the chip has no such product (`research.devices.backend.multiplies`)
only the weight is quantized, which is more exact. The activations' gradient is that of the
weight-only product: rounding counts as the identity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.devices.backend import multiplies
from research.weights.code_products import multiply_codes, quantize_tokens
from research.weights.quantized import Quantized
from research.weights.wrapper import Wrapper


@partial(jax.tree_util.register_dataclass, data_fields=["base"], meta_fields=[])
@dataclass(frozen=True)
class DynamicQuantized(Wrapper):
    """An 8-bit weight with one scale for each output, whose products quantize their activations.
    Rows of tables and the experts' products read the weight alone."""

    base: Quantized

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight, both in 8 bits, in the dtype of `x`. Only the weight's codes
        and scales are kept for the backward pass."""
        # Emulating the product in floats would be slower and less exact than the weight-only one.
        if not multiplies(self.base.codes.dtype):
            return self.base.einsum(eqn, x)
        return _product(eqn, x, self.base)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]."""
        return self.base.take(ids)

    def rows(self, first: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
        """Rows `first` to `first + count` of a gathered table [V, D], as an array [count, D]."""
        return self.base.rows(first, count, dtype)

    def grouped(self, x: jax.Array, sizes: jax.Array, implementation: str = "auto") -> jax.Array:
        """Rows [M, I] in groups of `sizes` [E], each group times its expert's matrix, [M, O]; `x`
        is not quantized."""
        return self.base.grouped(x, sizes, implementation)

    def gathered(self) -> "DynamicQuantized":
        """This leaf with the mesh axes that only store it gathered."""
        return replace(self, base=self.base.gathered())

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        return self.base.dense(dtype)


def quantize_activations(params: tree.Tree, rules: Sequence[tuple[str, bool]]) -> tree.Tree:
    """The tree with a `DynamicQuantized` over each quantized weight whose first matching rule says
    True.

        quantize_activations(params, [("layers/.*/(query|up)", True), (".*", False)])

    ValueError for a rule that matches nothing, and for a weight that is not in 8 bits with one
    scale for each output.
    """
    return wrap_quantized(params, rules, DynamicQuantized)


def wrap_quantized(
    params: tree.Tree, rules: Sequence[tuple[str, bool]], leaf: Callable[[Quantized], Any]
) -> tree.Tree:
    """The tree with `leaf(w)` for each 8-bit weight w whose first matching rule says True.
    ValueErrors as in `quantize_activations`."""

    def is_weight(node: Any) -> bool:
        return isinstance(node, Quantized) or not isinstance(node, dict)

    # Leaves count as one node here, or the rules would see the codes and scales inside them.
    chosen, wrapped = tree.paths(tree.choose(rules, params, is_weight)), {}
    for path, w in tree.paths(params, is_weight).items():
        if chosen[path]:
            _check(path, w)
        wrapped[path] = leaf(w) if chosen[path] else w
    return tree.unflatten(wrapped)


def _check(path: str, w: Any) -> None:
    if not isinstance(w, Quantized) or w.codes.dtype not in (
        jnp.int8,
        jnp.float8_e4m3fn,
        jnp.float8_e5m2,
    ):
        got = w.format if isinstance(w, Quantized) else type(w).__name__
        raise ValueError(
            f"{path} is {got}; quantize it to int8 or fp8 for products with quantized activations"
        )
    # With several groups the weight's scale would vary inside the sum and could not be taken out.
    if w.codes.shape[w.group_axis] != 1:
        raise ValueError(
            f"{path} has a scale for each {w.group} inputs; set config.quantize.group to 0"
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(eqn: str, x: jax.Array, w: Quantized) -> jax.Array:
    # Activations have more outliers than weights and are always in e4m3, whatever the weight is in.
    floating = jnp.issubdtype(w.codes.dtype, jnp.floating)
    codes, scale = quantize_tokens(eqn, x, jnp.float8_e4m3fn if floating else w.codes.dtype)
    return multiply_codes(eqn, codes, scale, w).astype(x.dtype)


def _forward(eqn: str, x: jax.Array, w: Quantized):
    # The weight-only product is there for its pullback, which keeps the weight alone; the compiler
    # drops its value.
    _, pull = jax.vjp(partial(w.einsum, eqn), x)
    return _product(eqn, x, w), pull


def _backward(eqn: str, pull: Any, dy: jax.Array):
    # The weight is frozen: it has no gradient.
    return *pull(dy), None


_product.defvjp(_forward, _backward)
