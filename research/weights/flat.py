"""Codes in the order of a matrix [out, in] laid flat, as bitsandbytes cuts its blocks: a block may
run over a row's end."""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from research.weights.formats import FORMATS, decode, unpack
from research.weights.quantized import Quantized
from research.weights.scales import QuantizedScales


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero"],
    meta_fields=["format", "inputs", "after", "outputs", "start"],
)
@dataclass(frozen=True)
class FlatQuantized(Quantized):
    """A weight whose blocks do not divide its inputs. `codes` [..., blocks, G / 2] hold the flat
    matrix of `outputs` and `inputs`, from the value `start` of the first block on; `scale` float32
    [..., blocks, 1], or in a row. What is stacked lies in front. `after` is 0 for a table, whose
    inputs are its last axis, else the number of outputs.

    Not cut over devices: it is whole on each.
    """

    outputs: tuple[int, ...] = ()
    start: int = 0

    @property
    def group(self) -> int:
        """Values that share a scale."""
        return 2 * self.codes.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        own = (*self.inputs, *self.outputs) if self.after else (*self.outputs, *self.inputs)
        return (*self.codes.shape[:-2], *own)

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        chosen, lead = FORMATS[self.format], self.codes.shape[:-2]
        values = decode(chosen, unpack(chosen, self.codes), self.plain_scale(), None).reshape(
            *lead, -1
        )
        rows, columns = math.prod(self.outputs), math.prod(self.inputs)
        matrix = values[..., self.start : self.start + rows * columns].reshape(*lead, rows, columns)
        return (
            (jnp.swapaxes(matrix, -1, -2) if self.after else matrix)
            .reshape(self.shape)
            .astype(dtype)
        )

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]."""
        if self.after or self.codes.ndim != 2:
            raise ValueError(
                f"a weight of shape {self.shape} is no table; rows are read from tables alone"
            )
        return self.dense()[ids]

    def gathered(self) -> "FlatQuantized":
        """This leaf with float scales: it is whole on every device already."""
        return replace(self, scale=self.plain_scale())

    def plain_scale(self) -> jax.Array:
        """Float scales [..., blocks, 1]."""
        return (
            self.scale.dense()[..., None] if isinstance(self.scale, QuantizedScales) else self.scale
        )
