"""A weight stored as codes and scales: a leaf that takes the place of an array and contracts
itself.

The axes that a product sums over (a weight's inputs) are merged into one and cut into groups: a
query kernel [D, N, H] has codes [D / G, G, N, H], an output kernel [N, H, D] has [N H / G, G, D], a
table [V, D] has [V, D / G, G]. Stacked axes stay in front, so quantizing a stack of weights equals
stacking quantized weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.parallel.placement import gather, merge_axes, partition_spec, spec_entries
from research.scopes import scope
from research.weights import products
from research.weights.formats import FORMATS, Format, decode, encode, pack, stored_format, unpack
from research.weights.grouping import cut_inputs
from research.weights.leaf import Leaf
from research.weights.matrices import count_stacked
from research.weights.packing import packed_size
from research.weights.scales import (
    QuantizedScales,
    count_blocks,
    from_exponents,
    quantize_scales,
    to_exponents,
)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero"],
    meta_fields=["format", "inputs", "after"],
)
@dataclass(frozen=True)
class Quantized(Leaf):
    """A weight with I inputs in groups of G, in the format that `format` names.

    codes    [..., I / G, G, ...] in the format's storage type; packed codes are bytes uint8
             [..., I / G, G bits / 8, ...], see research/weights/packing.py
    scale    float32 [..., I / G, 1, ...], or their exponents uint8 (e8m0); for double quantization
             a `QuantizedScales` row [..., outputs * I / G], outputs before groups
    zero     float32 [..., I / G, 1, ...], the zero points of a format that has them; else None
    inputs   sizes of the original input axes, with product I (sharded: only the first is local)
    after    number of output axes behind the group's; 0 for a table, whose inputs come last

    Nothing in it is trained: its products have no gradient for codes or scales.
    """

    codes: jax.Array
    scale: Any  # an array or `QuantizedScales`
    zero: jax.Array | None
    format: str
    inputs: tuple[int, ...]
    after: int

    frozen = True
    flat: ClassVar[bool] = False  # whether a group may run over the end of a row

    @property
    def group_axis(self) -> int:
        """The axis of `codes` that numbers groups; the next one runs within a group."""
        return len(self.codes.shape) - self.after - 2  # of specs too, which have no `ndim`

    @property
    def group(self) -> int:
        """Values that share a scale."""
        return self.codes.shape[self.group_axis + 1] * 8 // stored_format(self.format).bits

    @property
    def scales(self) -> str:
        """How the scales are stored: "float32", "double" or "e8m0". This differs from the format's
        own `Format.scales` in checkpoints with plain scales, and in the result of `gathered`."""
        if isinstance(self.scale, QuantizedScales):
            return "double"
        return "e8m0" if self.scale.dtype == jnp.uint8 else "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that the codes stand for."""
        at = self.group_axis
        # Inside `shard_map` the codes are a device's part, so the first input axis is computed from
        # them; the other input axes are never split (`inputs` still has the whole sizes).
        first = self.codes.shape[at] * self.group // math.prod(self.inputs[1:])
        return (*self.codes.shape[:at], first, *self.inputs[1:], *self.codes.shape[at + 2 :])

    @scope("dequantize")
    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        at, format = self.group_axis, stored_format(self.format)
        codes = unpack(format, self.codes, at + 1)
        values = decode(format, codes, self.plain_scale(), self.zero).astype(dtype)
        if jax.sharding.get_abstract_mesh().empty:
            return values.reshape(self.shape)
        # JAX asks for the sharding of a reshape that splits an axis: the first input keeps the
        # groups' mesh axes.
        entries, unsplit = spec_entries(values), (None,) * (len(self.inputs) - 1)
        place = PartitionSpec(*entries[: at + 1], *unsplit, *entries[at + 2 :])
        return jnp.reshape(values, self.shape, out_sharding=place)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight, in the dtype of `x`. Codes and scales are kept for the
        backward pass, never a dense weight."""
        return products.product(eqn, partition_spec(x), x, self)

    @scope("dequantize")
    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]; only these are made dense. ValueError
        for a weight that is not a table."""
        if self.after or self.codes.ndim != 3:
            raise ValueError(
                f"a weight of shape {self.shape} is no table; rows are read from tables alone"
            )
        # Codes, scales and zero points all have V as first axis, so one gather of each is enough.
        # A row of double quantization has no such axis and is made plain first.
        taken = jax.tree.map(
            lambda part: _take(gather(part), ids), replace(self, scale=self.plain_scale())
        )
        format = stored_format(self.format)
        values = decode(format, unpack(format, taken.codes), taken.scale, taken.zero)
        return merge_axes(values, values.ndim - 2)

    def rows(self, first: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
        """Rows `first` to `first + count` of a gathered table [V, D], as an array [count, D]; only
        these are made dense."""
        return jax.tree.map(lambda part: lax.dynamic_slice_in_dim(part, first, count), self).dense(
            dtype
        )

    def grouped(self, x: jax.Array, sizes: jax.Array, implementation: str = "auto") -> jax.Array:
        """Rows [M, I] in groups of `sizes` [E], each group times its expert's matrix in this weight
        [E, I, O], as [M, O]."""
        return products.grouped(implementation, x, sizes, self)

    def gathered(self) -> "Quantized":
        """This leaf with the mesh axes that only store it gathered, and with float32 scales."""
        codes, scale = gather(self.codes), self.plain_scale()
        if not jax.sharding.get_abstract_mesh().empty:
            inside = self.group_axis + 1
            # `gather` moves codes; scales follow them, except along the axis within a group, where
            # a scale has size 1.
            place = [
                None if at == inside else entry for at, entry in enumerate(spec_entries(codes))
            ]
            scale = jax.reshard(scale, PartitionSpec(*place))
        zero = None if self.zero is None else gather(self.zero)
        return replace(self, codes=codes, scale=scale, zero=zero)

    def specs(self, of: Any) -> "Quantized":
        """A spec for each array in it, where the spec of its weight is `of`."""
        stacked = count_stacked(of.axes)
        return quantize_spec(of, self.format, stacked=stacked, group=self.group, scales=self.scales)

    def plain_scale(self) -> jax.Array:
        """The scales as float32 [..., I / G, 1, ...]."""
        if self.scales == "float32":
            return self.scale
        if self.scales == "e8m0":
            return from_exponents(self.scale)
        at, row = self.group_axis, self.scale.dense()
        stack = row.shape[:-1]
        outputs = (*self.codes.shape[len(stack) : at], *self.codes.shape[at + 2 :])
        # bitsandbytes numbers blocks along the rows of a matrix [out, in]: outputs before groups.
        scale = row.reshape(*stack, *outputs, self.codes.shape[at])
        return jnp.expand_dims(jnp.moveaxis(scale, -1, at), at + 1)


def is_quantized(node: Any) -> bool:
    """True if a node of a parameter tree is a weight stored as codes; use as `is_leaf`."""
    return isinstance(node, Quantized)


def quantize_array(
    w: jax.Array, format: str, *, inputs: int, stacked: int = 0, group: int | None = None
) -> Quantized:
    """`w` in the format of this name.

    `inputs` is the number of axes that a product sums over, counted after the `stacked` ones; -1
    means the last axis (tables). `group` is how many values share a scale: None takes the format's
    own number, 0 all inputs of an output.

        quantize_array(query_LDNH, "nf4", inputs=1, stacked=1)

    ValueError if groups do not divide the inputs, or if the codes of one do not fill whole bytes.
    """
    chosen = FORMATS[format]
    cut = cut_inputs(w.shape, chosen, inputs, stacked, group)
    # All input axes become two, [I / G, G]; a group of a kernel [N, H, D] may run over several
    # heads.
    grouped = w.reshape(cut.shape(cut.group))
    codes, scale, zero = _encoded(chosen, cut.axis + 1, grouped)
    if chosen.scales == "double":
        # Scales are quantized in blocks of 256 along one row for each layer, in bitsandbytes'
        # order, so that files can be written and read without touching them.
        rows = jnp.moveaxis(jnp.squeeze(scale, cut.axis + 1), cut.axis, -1)
        scale = quantize_scales(rows.reshape(*w.shape[:stacked], -1))
    elif chosen.scales == "e8m0":
        scale = to_exponents(scale)
    return Quantized(codes, scale, zero, format, cut.inputs, len(cut.behind))


@partial(jax.jit, static_argnums=(0, 1))
def _encoded(
    format: Format, axis: int, grouped: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Packed codes, scale and zero point of the groups along an axis."""
    codes, scale, zero = encode(format, jnp.moveaxis(grouped, axis, -1))
    back = partial(jnp.moveaxis, source=-1, destination=axis)
    return back(pack(format, codes)), back(scale), None if zero is None else back(zero)


def quantize_spec(
    w: Any, format: str, *, stacked: int, group: int | None = None, scales: str | None = None
) -> Quantized:
    """The result of `quantize_array` for a weight with spec `w`, as specs: shapes, logical axes and
    types. `scales` overrides how the format stores its scales.

    Groups take the logical axis of the first input. Doubly quantized scales, about a hundredth of
    the codes' bytes, are replicated. ValueErrors as in `quantize_array`.
    """
    chosen = stored_format(format)
    cut = cut_inputs(w.shape, chosen, w.inputs, stacked, group)
    scales = chosen.scales if scales is None else scales

    # No `init`: codes are made from a weight and not drawn.
    def _grouped_spec(inside: int, dtype: str) -> Any:
        axes = (*w.axes[: cut.axis + 1], "group", *w.axes[len(w.shape) - len(cut.behind) :])
        return replace(w, shape=cut.shape(inside), axes=axes, dtype=dtype, init=None)

    def _row_spec(length: int, dtype: str) -> Any:
        shape, axes = (*w.shape[:stacked], length), (*w.axes[:stacked], "group")
        return replace(w, shape=shape, axes=axes, dtype=dtype, init=None)

    scale = _grouped_spec(1, "uint8" if scales == "e8m0" else "float32")
    if scales == "double":
        count = math.prod(scale.shape[stacked:])
        scale = QuantizedScales(
            _row_spec(count, "uint8"),
            _row_spec(count_blocks(count), "float32"),
            _row_spec(1, "float32"),
        )
    zero = _grouped_spec(1, "float32") if chosen.has_zero else None
    codes = _grouped_spec(packed_size(cut.group, chosen.bits), chosen.storage)
    return Quantized(codes, scale, zero, format, cut.inputs, len(cut.behind))


def stack(leaves: Sequence[Quantized]) -> Quantized:
    """Leaves of equal shape and format as one leaf with a new leading axis."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *leaves)


def _take(part: jax.Array, ids: jax.Array) -> jax.Array:
    """part[ids] of [V, I / G, G] for ids of any shape, placed as the ids are."""
    if jax.sharding.get_abstract_mesh().empty:
        return part.at[ids].get(mode="clip")
    return part.at[ids].get(
        mode="clip", out_sharding=PartitionSpec(*spec_entries(ids), *spec_entries(part)[1:])
    )
