"""LLM.int8 (arXiv:2208.07339): the few input features with outliers are multiplied in 16 bits, all
others in int8.

    y = x_O W_O + s_x s_w sum(x8 w8)   O: features in which any token reaches the threshold (3.2)

This follows bitsandbytes: the scale of a token ignores its outliers, but counts its other values in
outlier features; and a feature is an outlier feature if any token of the batch reaches the
threshold, so a token's result depends, within rounding, on its neighbours. Features are masked and
not gathered: their number depends on the data, and a shape must be known at compile time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.devices.backend import multiplies
from research.ops.kernels.equation import parse
from research.weights.code_products import multiply_codes, quantize_tokens
from research.weights.dynamic import DynamicQuantized, wrap_quantized
from research.weights.quantized import Quantized

# Features that reach this magnitude are what breaks plain int8 from 6.7B parameters on.
THRESHOLD = 6.0  # section 4, and bitsandbytes' own


@partial(jax.tree_util.register_dataclass, data_fields=["base"], meta_fields=["threshold"])
@dataclass(frozen=True)
class LlmInt8(DynamicQuantized):
    """An int8 weight with one scale for each output, multiplied by LLM.int8. Where the chip has no
    int8 product, everything is multiplied in the dtype of the activations."""

    threshold: float = THRESHOLD

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight, the int8 part plus the 16-bit part, in the dtype of `x`.
        Only the weight's codes and scales are kept for the backward pass."""
        if not multiplies(self.base.codes.dtype):
            return self.base.einsum(eqn, x)
        return _product(eqn, self.threshold, x, self.base)


def llm_int8(
    params: tree.Tree, rules: Sequence[tuple[str, bool]], threshold: float = THRESHOLD
) -> tree.Tree:
    """The tree with an `LlmInt8` over each int8 weight whose first matching rule says True.

    `threshold` is the magnitude from which an activation is an outlier. ValueError for a rule that
    matches nothing, and for a weight that is not int8 with one scale for each output.
    """

    def _leaf(w: Quantized) -> LlmInt8:
        if w.format != "int8":
            raise ValueError(
                f"LLM.int8 is of int8 weights and not of {w.format}; set config.quantize.format"
            )
        return LlmInt8(w, threshold)

    return wrap_quantized(params, rules, _leaf)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(eqn: str, threshold: float, x: jax.Array, w: Quantized) -> jax.Array:
    of_x, _, of_y = parse(eqn)
    tokens = tuple(at for at, letter in enumerate(of_x) if letter in of_y)
    outliers = jnp.abs(x) >= threshold
    # An input feature is an outlier for all tokens or for none: that is what lets whole columns
    # of `x`, and with them rows of W, move to the other product.
    features = jnp.any(outliers, axis=tokens, keepdims=True)
    # Outliers are zeroed before the scale is taken, whole outlier features only afterwards, in the
    # codes: the order in which bitsandbytes does it.
    codes, scale = quantize_tokens(eqn, jnp.where(outliers, 0, x), jnp.int8)
    int8_part = multiply_codes(eqn, jnp.where(features, 0, codes), scale, w)
    return (int8_part + w.einsum(eqn, jnp.where(features, x, 0))).astype(x.dtype)


def _forward(eqn: str, threshold: float, x: jax.Array, w: Quantized):
    # The weight-only product is there for its pullback, which keeps the weight alone; the compiler
    # drops its value.
    _, pull = jax.vjp(partial(w.einsum, eqn), x)
    return _product(eqn, threshold, x, w), pull


def _backward(eqn: str, threshold: float, pull: Any, dy: jax.Array):
    # The weight is frozen: it has no gradient.
    return *pull(dy), None


_product.defvjp(_forward, _backward)
