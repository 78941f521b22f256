"""Codes of a matrix [out, in] laid flat, as bitsandbytes cuts it into blocks: a block may cross the
end of a row."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.weights.formats import FORMATS, decode, unpack
from research.weights.quantized import Quantized


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero"],
    meta_fields=["format", "inputs", "after", "outputs", "start"],
)
@dataclass(frozen=True)
class FlatQuantized(Quantized):
    """A weight whose blocks of G values do not divide its inputs.

    `codes` [..., blocks, G / 2] are those of the matrix [outputs, inputs] laid flat, whose first
    value is number `start` of the first block. `scale` is float32 [..., blocks, 1], or a row
    [..., blocks] of `QuantizedScales`. `outputs` and `inputs` are the sizes of the weight's axes;
    stacked ones are in front of all. `after` is 0 for a table, whose inputs come last, else the
    number of outputs.

    Every device holds all of it.
    """

    outputs: tuple[int, ...] = ()
    start: int = 0

    flat = True

    @property
    def group(self) -> int:
        """Values that share a scale."""
        return self.codes.shape[-1] * 8 // FORMATS[self.format].bits

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        first, last = (self.inputs, self.outputs) if self.after else (self.outputs, self.inputs)
        return (*self.codes.shape[:-2], *first, *last)

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        stack, O, I = self.codes.shape[:-2], math.prod(self.outputs), math.prod(self.inputs)
        values = self._values(self.codes, self.plain_scale()).reshape(*stack, -1)
        matrix = values[..., self.start : self.start + O * I].reshape(*stack, O, I)
        weight = jnp.swapaxes(matrix, -1, -2) if self.after else matrix
        return weight.reshape(self.shape).astype(dtype)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]. ValueError for what is no table."""
        if self.after or self.codes.ndim != 2:
            raise ValueError(
                f"a weight of shape {self.shape} is no table; rows are read from tables alone"
            )
        return self.dense()[ids]

    def rows(self, first: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
        """Rows `first` to `first + count` of a gathered table [V, D]: only the blocks that they
        touch are made dense."""
        width = math.prod(self.inputs)
        # Rows may begin within a block, so they touch one more than their values fill.
        blocks = min(self.codes.shape[0], count * width // self.group + 2)
        begin = self.start + first * width
        block = jnp.minimum(begin // self.group, self.codes.shape[0] - blocks)
        codes, scale = (
            lax.dynamic_slice_in_dim(part, block, blocks) for part in (self.codes, self.scale)
        )
        values = self._values(codes, scale).reshape(-1)
        taken = lax.dynamic_slice_in_dim(values, begin - block * self.group, count * width)
        return taken.reshape(count, width).astype(dtype)

    def gathered(self) -> "FlatQuantized":
        """This leaf with float32 scales; every device holds all of it already."""
        return replace(self, scale=self.plain_scale())

    def specs(self, of: Any) -> "FlatQuantized":
        """A spec for each array in it; all lie whole on every device."""
        return jax.tree.map(lambda x: replace(of, shape=x.shape, axes=("group",) * x.ndim), self)

    def plain_scale(self) -> jax.Array:
        """The scales as float32 [..., blocks, 1]."""
        return self.scale.dense()[..., None] if self.scales == "double" else self.scale

    def _values(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """The values of blocks, float32 [..., blocks, G]."""
        format = FORMATS[self.format]
        return decode(format, unpack(format, codes), scale, None)
