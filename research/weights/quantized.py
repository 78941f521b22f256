"""A weight held as codes and scales: a leaf that stands where an array would, and contracts itself.

The axes that a product sums over (a weight's inputs) are one axis here, cut into groups: a query
kernel [D, N, H] is held as codes [D / G, G, N, H], an output kernel [N, H, D] as [N H / G, G, D], a
table [V, D] as [V, D / G, G]. Stacked axes stay in front of everything, so quantizing a stack is
stacking what is quantized.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research import tree
from research.ops.einsum import contract
from research.ops.equation import parse
from research.ops.kernels import quantized_matmul
from research.parallel.placement import gather, place_as, placed, spec, unite
from research.weights.formats import FORMATS, decode, encode, pack, unpack
from research.weights.scales import QuantizedScales, count_blocks, quantize_scales


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero"],
    meta_fields=["format", "inputs", "after"],
)
@dataclass(frozen=True)
class Quantized:
    """`codes` [..., I / G, G, ...] in the format's type, those of 4 bits packed as bytes [..., I /
    G, G / 2, ...]; `scale` and `zero` float32 of that shape with 1 for G, the scales of a doubly
    quantized format in a row, outputs first. `inputs` are the sizes that make up I, of which a
    device may hold a part of the first; `after` is the number of axes behind the group's."""

    codes: jax.Array
    scale: jax.Array | QuantizedScales
    zero: jax.Array | None
    format: str
    inputs: tuple[int, ...]
    after: int

    @property
    def group(self) -> int:
        """Values that share a scale."""
        return self.codes.shape[self._at + 1] * (2 if FORMATS[self.format].bits == 4 else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        held, (_, *rest) = self.codes.shape[self._at] * self.group, self.inputs
        return (
            *self.codes.shape[: self._at],
            held // math.prod(rest),
            *rest,
            *self.codes.shape[self._at + 2 :],
        )

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        at, chosen = self._at, FORMATS[self.format]
        values = decode(
            chosen, unpack(chosen, self.codes, at + 1), self.plain_scale(), self.zero
        ).astype(dtype)
        if jax.sharding.get_abstract_mesh().empty:
            return values.reshape(self.shape)
        entries, whole = spec(values), (None,) * (len(self.inputs) - 1)
        where = PartitionSpec(*entries[: at + 1], *whole, *entries[at + 2 :])
        return jnp.reshape(values, self.shape, out_sharding=where)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight. Its backward pass keeps codes and scales and no dense
        weight."""
        return _product(eqn, placed(x), x, self)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]: only those are made dense."""
        if self.after or self.codes.ndim != 3:
            raise ValueError(
                f"a weight of shape {self.shape} is no table; rows are read from tables alone"
            )
        rows = jax.tree.map(
            lambda part: _rows(gather(part), ids), replace(self, scale=self.plain_scale())
        )
        chosen = FORMATS[self.format]
        values = decode(chosen, unpack(chosen, rows.codes), rows.scale, rows.zero)
        return unite(values, values.ndim - 2)

    def rows(self, first: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
        """`count` rows of a table [V, D] from `first` on, dense; of a leaf with float scales, as
        `gathered` gives it."""
        return jax.tree.map(lambda part: lax.dynamic_slice_in_dim(part, first, count), self).dense(
            dtype
        )

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """Rows [M, I] in groups of these sizes, each times the matrix of its expert in this [E, I,
        O], as [M, O]."""
        return _grouped(x, sizes, self)

    def gathered(self) -> "Quantized":
        """This leaf over fewer devices, as `research.ops.einsum.gathered` says, with float
        scales."""
        codes, scale = gather(self.codes), self.plain_scale()
        if not jax.sharding.get_abstract_mesh().empty:
            where = [None if at == self._at + 1 else entry for at, entry in enumerate(spec(codes))]
            scale = jax.reshard(scale, PartitionSpec(*where))
        return replace(
            self, codes=codes, scale=scale, zero=None if self.zero is None else gather(self.zero)
        )

    def nbits(self) -> int:
        """Bits of storage, scales included."""
        return tree.nbits(self)

    @property
    def _at(self) -> int:
        """The axis of the groups."""
        return self.codes.ndim - self.after - 2

    def plain_scale(self) -> jax.Array:
        """Float scales [..., I / G, 1, ...]."""
        if not isinstance(self.scale, QuantizedScales):
            return self.scale
        at, rows = self._at, self.scale.dense()
        stack = rows.shape[:-1]
        groups = self.codes.shape[at]
        outputs = (*self.codes.shape[len(stack) : at], *self.codes.shape[at + 2 :])
        # Outputs before groups, as rows of a matrix [out, in] have them.
        grouped = rows.reshape(*stack, *outputs, groups)
        return jnp.expand_dims(jnp.moveaxis(grouped, -1, at), at + 1)


def quantize_array(
    w: jax.Array, format: str, *, inputs: int, stacked: int = 0, group: int | None = None
) -> Quantized:
    """A weight in a format. `inputs` counts the axes behind the `stacked` ones that a product sums
    over, -1 is the last one of a table; `group` is the format's own where it is None.

    ValueError where groups do not divide the inputs, or are odd in a format of 4 bits.
    """
    chosen = FORMATS[format]
    at, sizes, total, size = _cut(w.shape, format, inputs, stacked, group)
    after = w.ndim - at - len(sizes)
    grouped = w.reshape(*w.shape[:at], total // size, size, *w.shape[at + len(sizes) :])
    codes, scale, zero = _encoded(format, at + 1, grouped)
    if chosen.double:
        rows = jnp.moveaxis(jnp.squeeze(scale, at + 1), at, -1)
        scale = quantize_scales(rows.reshape(*w.shape[:stacked], -1))
    return Quantized(codes, scale, zero, format, sizes, after)


@partial(jax.jit, static_argnums=(0, 1))
def _encoded(
    format: str, axis: int, grouped: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Packed codes, scale and zero point of the groups along an axis."""
    chosen = FORMATS[format]
    codes, scale, zero = encode(chosen, jnp.moveaxis(grouped, axis, -1))
    codes = pack(codes) if chosen.bits == 4 else codes
    return tuple(None if x is None else jnp.moveaxis(x, -1, axis) for x in (codes, scale, zero))


def quantize_spec(w: Any, format: str, *, stacked: int, group: int | None = None) -> Quantized:
    """What `quantize_array` makes of a weight with this spec, as specs: shapes, logical axes and
    types.

    The groups take the mesh axes of the first of the inputs; scales that are quantized themselves,
    a hundredth of the codes, are whole on every device. ValueErrors as there.
    """
    chosen = FORMATS[format]
    at, sizes, total, size = _cut(w.shape, format, w.inputs, stacked, group)
    behind = at + len(sizes)
    bytes_a_group = size // 2 if chosen.bits == 4 else size

    def part(inside: int, dtype: str) -> Any:
        shape = (*w.shape[:at], total // size, inside, *w.shape[behind:])
        axes = (*w.axes[:at], w.axes[at], "group", *w.axes[behind:])
        return replace(w, shape=shape, axes=axes, dtype=dtype, init=None)

    scale = part(1, "float32")
    if chosen.double:
        count = math.prod(scale.shape[stacked:])

        def row(length: int, dtype: str) -> Any:
            shape, axes = (*w.shape[:stacked], length), (*w.axes[:stacked], "group")
            return replace(w, shape=shape, axes=axes, dtype=dtype, init=None)

        scale = QuantizedScales(
            row(count, "uint8"), row(count_blocks(count), "float32"), row(1, "float32")
        )
    zero = part(1, "float32") if chosen.kind == "affine" else None
    return Quantized(
        part(bytes_a_group, chosen.storage), scale, zero, format, sizes, len(w.shape) - behind
    )


def stack(leaves: Sequence[Quantized]) -> Quantized:
    """Equal leaves as one with a leading axis."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *leaves)


def _cut(
    shape: tuple[int, ...], format: str, inputs: int, stacked: int, group: int | None
) -> tuple[int, tuple[int, ...], int, int]:
    """Where the inputs begin, their sizes, their number, and the size of a group."""
    at = len(shape) - 1 if inputs < 0 else stacked
    sizes = shape[at:] if inputs < 0 else shape[at : at + inputs]
    total, size = math.prod(sizes), FORMATS[format].group if group is None else group
    size = size or total
    if total % size:
        raise ValueError(
            f"groups of {size} do not divide {total} inputs; set config.quantize.group to a divisor of it"
        )
    if FORMATS[format].bits == 4 and size % 2:
        raise ValueError(
            f"{format} keeps two codes a byte and a group of {size} is odd; set config.quantize.group"
        )
    return at, tuple(sizes), total, size


def _rows(part: jax.Array, ids: jax.Array) -> jax.Array:
    """part[ids] of [V, I / G, G] for ids of any shape, spread as the ids are."""
    if jax.sharding.get_abstract_mesh().empty:
        return part.at[ids].get(mode="clip")
    return part.at[ids].get(mode="clip", out_sharding=PartitionSpec(*spec(ids), *spec(part)[1:]))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(eqn: str, place: PartitionSpec | None, x: jax.Array, w: Quantized) -> jax.Array:
    w = w.gathered()
    # A kernel that decodes tile by tile, where there is one for the case; it knows no zero points.
    y = (
        quantized_matmul.product(eqn, x, w.codes, w.scale, FORMATS[w.format].book)
        if w.zero is None
        else None
    )
    return contract(eqn, x, w.dense(x.dtype)) if y is None else y


def _forward(eqn: str, place: PartitionSpec | None, x: jax.Array, w: Quantized):
    return _product(eqn, place, x, w), w


def _backward(eqn: str, place: PartitionSpec | None, w: Quantized, dy: jax.Array):
    w, dx = w.gathered(), None
    if w.zero is None:
        dx = quantized_matmul.pullback(eqn, dy, w.codes, w.scale, w.inputs, FORMATS[w.format].book)
    if dx is None:
        of_x, of_w, of_y = parse(eqn)
        dx = contract(f"{of_y},{of_w}->{of_x}", dy, w.dense(dy.dtype))
    return place_as(dx, place), None


_product.defvjp(_forward, _backward)


@jax.custom_vjp
def _grouped(x: jax.Array, sizes: jax.Array, w: Quantized) -> jax.Array:
    return lax.ragged_dot(x, w.dense(x.dtype), sizes)


def _grouped_forward(x: jax.Array, sizes: jax.Array, w: Quantized):
    return _grouped(x, sizes, w), (sizes, w)


def _grouped_backward(saved: tuple[jax.Array, Quantized], dy: jax.Array):
    sizes, w = saved
    return lax.ragged_dot(dy, jnp.swapaxes(w.dense(dy.dtype), 1, 2), sizes), None, None


_grouped.defvjp(_grouped_forward, _grouped_backward)
