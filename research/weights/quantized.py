"""A weight held as codes and scales: a leaf that stands where an array would, and contracts itself.

The axes that a product sums over (a weight's inputs) are one axis here, cut into groups: a query kernel [D, N, H] is held
as codes [D / G, G, N, H], an output kernel [N, H, D] as [N H / G, G, D], a table [V, D] as [V, D / G, G]. Stacked axes stay
in front of everything, so quantizing a stack is stacking what is quantized.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from research.ops.einsum import contract
from research.weights.formats import FORMATS, decode, encode
from research.weights.scales import QuantizedScales, quantize_scales


@partial(
    jax.tree_util.register_dataclass, data_fields=["codes", "scale", "zero"], meta_fields=["format", "inputs", "after"]
)
@dataclass(frozen=True)
class Quantized:
    """`codes` [..., I / G, G, ...] in the format's type; `scale` and `zero` float32 of that shape with 1 for G, the scales
    of a doubly quantized format in a row, outputs first. `inputs` are the sizes that make up I, `after` is the number of
    axes behind the group's."""

    codes: jax.Array
    scale: jax.Array | QuantizedScales
    zero: jax.Array | None
    format: str
    inputs: tuple[int, ...]
    after: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        at = self.codes.ndim - self.after - 2
        return (*self.codes.shape[:at], *self.inputs, *self.codes.shape[at + 2 :])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        values = decode(FORMATS[self.format], _last(self.codes, self.after), _last(self._scale(), self.after), self._zero())
        return jnp.moveaxis(values, -1, values.ndim - self.after - 1).reshape(self.shape).astype(dtype)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight. Its backward pass keeps codes and scales and no dense weight."""
        return _product(eqn, x, self)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]: only those are made dense."""
        if self.after or self.codes.ndim != 3 or isinstance(self.scale, QuantizedScales):
            return self.dense()[ids]
        zero = None if self.zero is None else self.zero[ids]
        rows = decode(FORMATS[self.format], self.codes[ids], self.scale[ids], zero)
        return rows.reshape(*ids.shape, -1)

    def nbits(self) -> int:
        """Bits of storage, scales included."""
        scale = self.scale.nbits() if isinstance(self.scale, QuantizedScales) else 32 * self.scale.size
        return self.codes.size * FORMATS[self.format].bits + scale + (0 if self.zero is None else 32 * self.zero.size)

    def _scale(self) -> jax.Array:
        """Float scales [..., I / G, 1, ...]."""
        if not isinstance(self.scale, QuantizedScales):
            return self.scale
        at = self.codes.ndim - self.after - 2
        before, groups, after = self.codes.shape[:at], self.codes.shape[at], self.codes.shape[at + 2 :]
        rows = self.scale.dense()
        stack = rows.shape[:-1]
        outputs = (*before[len(stack) :], *after)
        # Outputs before groups, as rows of a matrix [out, in] have them.
        grouped = rows.reshape(*stack, *outputs, groups)
        return jnp.expand_dims(jnp.moveaxis(grouped, -1, at), at + 1)

    def _zero(self) -> jax.Array | None:
        return None if self.zero is None else _last(self.zero, self.after)


def quantize_array(w: jax.Array, format: str, *, inputs: int, stacked: int = 0, group: int | None = None) -> Quantized:
    """A weight in a format. `inputs` counts the axes behind the `stacked` ones that a product sums over, -1 is the last one
    of a table; `group` is the format's own where it is None.

    ValueError where groups do not divide the inputs.
    """
    chosen = FORMATS[format]
    at = w.ndim - 1 if inputs < 0 else stacked
    sizes = w.shape[at:] if inputs < 0 else w.shape[at : at + inputs]
    total, size = math.prod(sizes), chosen.group if group is None else group
    size = size or total
    if total % size:
        raise ValueError(f"groups of {size} do not divide {total} inputs; set config.quantize.group to a divisor of it")
    after = w.ndim - at - len(sizes)
    grouped = w.reshape(*w.shape[:at], total // size, size, *w.shape[at + len(sizes) :])
    codes, scale, zero = encode(chosen, _last(grouped, after))
    codes, scale, zero = (None if x is None else jnp.moveaxis(x, -1, at + 1) for x in (codes, scale, zero))
    if chosen.double:
        rows = jnp.moveaxis(jnp.squeeze(scale, at + 1), at, -1)
        scale = quantize_scales(rows.reshape(*w.shape[:stacked], -1))
    return Quantized(codes, scale, zero, format, tuple(sizes), after)


def _last(x: jax.Array, after: int) -> jax.Array:
    """`x` with the group's axis, which `after` axes follow, as the last."""
    return jnp.moveaxis(x, x.ndim - after - 1, -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(eqn: str, x: jax.Array, w: Quantized) -> jax.Array:
    return contract(eqn, x, w.dense(x.dtype))


def _forward(eqn: str, x: jax.Array, w: Quantized):
    return contract(eqn, x, w.dense(x.dtype)), w


def _backward(eqn: str, w: Quantized, dy: jax.Array):
    (of_x, of_w), of_y = eqn.split("->")[0].split(","), eqn.split("->")[1]
    return contract(f"{of_y},{of_w}->{of_x}", dy, w.dense(dy.dtype)), None


_product.defvjp(_forward, _backward)


def nbits(leaf: jax.Array | Quantized) -> int:
    """Bits of storage of a leaf."""
    if isinstance(leaf, Quantized):
        return leaf.nbits()
    return leaf.size * (4 if leaf.dtype in (jnp.int4, jnp.uint4) else 8 * leaf.dtype.itemsize)


def stack(leaves: Sequence[Quantized]) -> Quantized:
    """Equal leaves as one with a leading axis."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *leaves)
