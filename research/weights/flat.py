"""Quantized weights whose blocks run over the ends of rows: bitsandbytes cuts the flattened matrix
[out, in] into blocks, so a block may hold the end of one row and the start of the next."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from research.scopes import scope
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

    codes     [..., blocks, G / 2], packed, of the flattened matrix [outputs, inputs]; leading axes
              are stacked layers and experts
    scale     float32 [..., blocks, 1], or a `QuantizedScales` row [..., blocks]
    start     where in the first block the matrix begins: a part of a fused matrix may begin inside
              a block that it shares with its neighbour
    inputs    sizes of the weight's input axes, with product I
    outputs   sizes of its output axes
    after     number of output axes; 0 for a table, whose inputs come last

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
        """The shape of the weight that the codes stand for."""
        first, last = (self.inputs, self.outputs) if self.after else (self.outputs, self.inputs)
        return (*self.codes.shape[:-2], *first, *last)

    @scope("dequantize")
    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        stack, O, I = self.codes.shape[:-2], math.prod(self.outputs), math.prod(self.inputs)
        values = self._values(self.codes, self.plain_scale()).reshape(*stack, -1)
        matrix = values[..., self.start : self.start + O * I].reshape(*stack, O, I)
        # bitsandbytes' rows are outputs; our weights have their inputs first, except tables.
        weight = jnp.swapaxes(matrix, -1, -2) if self.after else matrix
        return weight.reshape(self.shape).astype(dtype)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]. ValueError for other weights."""
        if self.after or self.codes.ndim != 2:
            raise ValueError(
                f"a weight of shape {self.shape} is no table; rows are read from tables alone"
            )
        # All of it is made dense: the blocks of arbitrary rows lie at no fixed stride.
        return self.dense()[ids]

    def rows(self, first: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
        """Rows `first` to `first + count` of a gathered table [V, D], as an array [count, D]. Only
        the blocks that hold them are made dense."""
        width = math.prod(self.inputs)
        # Rows may begin within a block, so they touch one more than their values fill.
        blocks = min(self.codes.shape[0], count * width // self.group + 2)
        begin = self.start + first * width
        # `first` is traced, so the slice has a fixed number of blocks; near the end it starts
        # earlier instead of running over.
        block = jnp.minimum(begin // self.group, self.codes.shape[0] - blocks)
        codes, scale = (
            lax.dynamic_slice_in_dim(part, block, blocks) for part in (self.codes, self.scale)
        )
        values = self._values(codes, scale).reshape(-1)
        # The values wanted begin somewhere in the slice, as it starts at the edge of a block.
        taken = lax.dynamic_slice_in_dim(values, begin - block * self.group, count * width)
        return taken.reshape(count, width).astype(dtype)

    def gathered(self) -> "FlatQuantized":
        """This leaf with float32 scales; nothing is sharded, so there is nothing to gather."""
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
