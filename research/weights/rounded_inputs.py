"""A simulation of products with 8-bit activations that runs on any device, to measure what they
cost in accuracy."""

import math
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.weights.code_products import quantize_tokens
from research.weights.formats import FORMATS
from research.weights.matrices import LINEAR
from research.weights.quantized import Quantized, is_quantized
from research.weights.wrapper import Wrapper


@partial(jax.tree_util.register_dataclass, data_fields=["base"], meta_fields=[])
@dataclass(frozen=True)
class RoundedInputs(Wrapper):
    """A leaf that computes, on any device, the numbers of `DynamicQuantized` on a chip with 8-bit
    products: activations are quantized and dequantized, then multiplied as floats. Rows of tables
    and the experts' products read the weight alone."""

    base: Quantized

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x`, each token rounded to 8 bits, and the weight, in the dtype of `x`."""
        # Beside float8 weights of either kind activations are e4m3, as in
        # `research.weights.dynamic`.
        dtype = jnp.int8 if self.base.format == "int8" else jnp.float8_e4m3fn
        codes, scale = quantize_tokens(eqn, x, dtype)
        # codes * scale are the numbers that the 8-bit product multiplies, up to the order of the
        # sum.
        return self.base.einsum(eqn, (codes.astype(jnp.float32) * scale).astype(x.dtype))

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]."""
        return self.base.take(ids)

    def grouped(self, x: jax.Array, sizes: jax.Array, implementation: str = "auto") -> jax.Array:
        """Rows [M, I] in groups of `sizes` [E], each group times its expert's matrix, [M, O]; `x`
        is not rounded."""
        return self.base.grouped(x, sizes, implementation)

    def gathered(self) -> "RoundedInputs":
        """This leaf with the mesh axes that only store it gathered."""
        return replace(self, base=self.base.gathered())

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        return self.base.dense(dtype)


def round_inputs(params: tree.Tree) -> tree.Tree:
    """The parameters with `RoundedInputs` over every quantized matrix of the layers, also those
    under adapters.

    ValueError for a matrix that is not in 8 bits with one scale for each output: no chip has a
    product of such codes.
    """

    def _wrap(path: tuple, leaf: Any) -> Any:
        name = tree.path_name(path)
        if not is_quantized(leaf) or not re.match(LINEAR, name):
            return leaf
        if FORMATS[leaf.format].bits != 8 or leaf.group != math.prod(leaf.inputs):
            raise ValueError(
                f"{name} is {leaf.format} in groups of {leaf.group}; --activations wants 8 bits "
                "and no --group"
            )
        return RoundedInputs(leaf)

    return jax.tree.map_with_path(_wrap, params, is_leaf=is_quantized)
