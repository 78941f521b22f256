"""What products with quantized activations compute, on any device."""

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
    """A leaf that computes what `DynamicQuantized` does where the chip multiplies 8-bit numbers:
    activations are quantized, and the numbers that their codes stand for are multiplied. Rows of
    tables and experts' products are those of the weight alone."""

    base: Quantized

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x`, rounded for each token, and the weight."""
        dtype = jnp.int8 if self.base.format == "int8" else jnp.float8_e4m3fn
        codes, scale = quantize_tokens(eqn, x, dtype)
        return self.base.einsum(eqn, (codes.astype(jnp.float32) * scale).astype(x.dtype))

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]."""
        return self.base.take(ids)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """Rows [M, I] in groups of `sizes` [E], each group times its expert's matrix, [M, O]; `x`
        is not rounded."""
        return self.base.grouped(x, sizes)

    def gathered(self) -> "RoundedInputs":
        """This leaf with the mesh axes that only store it gathered."""
        return replace(self, base=self.base.gathered())

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        return self.base.dense(dtype)


def round_inputs(params: tree.Tree) -> tree.Tree:
    """The parameters with `RoundedInputs` over every quantized matrix of the layers, under adapters
    too.

    ValueError for one that is not of 8 bits with one scale an output, which no chip multiplies
    codes of.
    """

    def wrap(path: tuple, leaf: Any) -> Any:
        name = tree.path_name(path)
        if not is_quantized(leaf) or not re.match(LINEAR, name):
            return leaf
        if FORMATS[leaf.format].bits != 8 or leaf.group != math.prod(leaf.inputs):
            raise ValueError(
                f"{name} is {leaf.format} in groups of {leaf.group}; --activations wants 8 bits "
                "and no --group"
            )
        return RoundedInputs(leaf)

    return jax.tree.map_with_path(wrap, params, is_leaf=is_quantized)
