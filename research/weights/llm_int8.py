"""LLM.int8 (arXiv:2208.07339): the few input features with outliers multiply in 16 bits, all others
in int8.

    y = x_O W_O + s_x s_w sum(x8 w8)   O: features in which any token reaches the threshold (3.2)

As bitsandbytes computes it: the outliers of a token do not count in its scale, though its other
values in the outlier features do; and whether a feature has outliers is asked over all tokens at
hand, so a token's result depends, within rounding, on its neighbours. The features are masked and
not picked out, whose number would be a shape known too late.
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

THRESHOLD = 6.0  # section 4, and bitsandbytes' own


@partial(jax.tree_util.register_dataclass, data_fields=["base"], meta_fields=["threshold"])
@dataclass(frozen=True)
class LlmInt8(DynamicQuantized):
    """A leaf over an int8 weight with one scale an output. Where the chip has no int8 product,
    everything is multiplied in the type of the activations."""

    threshold: float = THRESHOLD

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight, in two parts. The backward pass keeps codes and scales and
        nothing of `x`."""
        if not multiplies(self.base.codes.dtype):
            return self.base.einsum(eqn, x)
        return _product(eqn, self.threshold, x, self.base)


def llm_int8(
    params: tree.Tree, rules: Sequence[tuple[str, bool]], threshold: float = THRESHOLD
) -> tree.Tree:
    """The tree with an `LlmInt8` over each int8 weight whose first matching rule says True.

    ValueError for a rule that matches nothing, and for a weight that is not int8 with one scale an
    output.
    """

    def leaf(w: Quantized) -> LlmInt8:
        if w.format != "int8":
            raise ValueError(
                f"LLM.int8 is of int8 weights and not of {w.format}; set config.quantize.format"
            )
        return LlmInt8(w, threshold)

    return wrap_quantized(params, rules, leaf)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(eqn: str, threshold: float, x: jax.Array, w: Quantized) -> jax.Array:
    of_x, _, of_y = parse(eqn)
    tokens = tuple(at for at, letter in enumerate(of_x) if letter in of_y)
    outliers = jnp.abs(x) >= threshold
    features = jnp.any(outliers, axis=tokens, keepdims=True)
    codes, scale = quantize_tokens(eqn, jnp.where(outliers, 0, x), jnp.int8)
    eight = multiply_codes(eqn, jnp.where(features, 0, codes), scale, w)
    return (eight + w.einsum(eqn, jnp.where(features, x, 0))).astype(x.dtype)


def _forward(eqn: str, threshold: float, x: jax.Array, w: Quantized):
    # The weight-only product is there for its pullback, which keeps the weight alone; the compiler
    # drops its value.
    _, pull = jax.vjp(partial(w.einsum, eqn), x)
    return _product(eqn, threshold, x, w), pull


def _backward(eqn: str, threshold: float, pull: Any, dy: jax.Array):
    return *pull(dy), None


_product.defvjp(_forward, _backward)
