"""Number formats of quantized weights: groups of values to codes and scales, and back, all in
float32.

A group lies along one axis, the last when it is encoded, [..., G]; its codes have the same shape,
its scale and zero point are [..., 1]. Codes of 4 bits are kept two in a byte: `pack` puts those of
j and j + G/2 into byte j, so that unpacking is two masks and a concatenation, which compilers fuse
and no axis has to be interleaved for. (XLA's own 4-bit types are packed too, but the GPU backend
unpacks whatever a scan slices: 64 GiB where a 70B model takes 47.)

    absolute   x = code * scale,                scale = max |x| / top                (int8, int4, fp8)
    affine     x = (code - zero) * scale,       scale = (max x - min x) / (2^bits - 1)  (uint4)
    book       x = book[code] * scale,          scale = max |x|                      (NF4, FP4)

The last is bitsandbytes' arithmetic to the bit: products with the reciprocal, ties to the lower
code.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from research.devices.backend import platform

# arXiv:2305.14314, appendix E: quantiles of a normal distribution, with an exact zero.
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
# bitsandbytes' FP4 by bit pattern. It is not the E2M1 of the Open Compute Project: the smallest
# step is finer.
FP4 = np.array(
    [0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32
) / np.float32(12)


@dataclass(frozen=True)
class Format:
    """One format. `group` is how many values share a scale, 0 for all of an input; `double`
    quantizes the scales again."""

    name: str
    dtype: str
    kind: str
    group: int
    double: bool = False

    @property
    def bits(self) -> int:
        """Of one code."""
        return _BITS[self.dtype]

    @property
    def storage(self) -> str:
        """The type of the arrays that hold codes: two of 4 bits share a byte."""
        return "uint8" if self.bits == 4 else self.dtype

    @property
    def book(self) -> np.ndarray | None:
        """The values of the codes, float32 [2^bits], for the formats that have a book."""
        return {"nf4": NF4, "fp4": FP4}.get(self.name)


_BITS = {"int8": 8, "int4": 4, "uint4": 4, "float8_e4m3fn": 8, "float8_e5m2": 8}
FORMATS = {
    format.name: format
    for format in (
        Format("int8", "int8", "absolute", 0),
        Format("int4", "int4", "absolute", 64),
        Format("uint4", "uint4", "affine", 64),
        Format("nf4", "uint4", "book", 64, double=True),
        Format("fp4", "uint4", "book", 64, double=True),
        Format("fp8_e4m3", "float8_e4m3fn", "absolute", 0),
        Format("fp8_e5m2", "float8_e5m2", "absolute", 0),
    )
}


def encode(format: Format, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Codes [..., G], scale and, for affine formats, zero point [..., 1] of groups of float values.

    Codes of 4 bits come as bytes, uint8 or for int4 int8, each with one.
    """
    x = x.astype(jnp.float32)
    dtype = jnp.dtype(format.dtype)
    if format.kind == "affine":
        return _encode_affine(x, dtype)
    absmax = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    if format.kind == "book":
        codes = _nearest(x * _reciprocal(absmax), format.book)
        return codes.astype(jnp.uint8), absmax, None
    top = _top(dtype)
    # As torch evaluates top / absmax: the reciprocal first, then the product.
    scaled = x * (_reciprocal(absmax) * top)
    codes = (
        scaled.astype(dtype)
        if jnp.issubdtype(dtype, jnp.floating)
        else jnp.round(scaled).astype(dtype)
    )
    return codes.astype(jnp.int8) if format.bits == 4 else codes, absmax / top, None


def decode(format: Format, codes: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
    """The values of codes, float32 [..., G]."""
    if format.kind == "book":
        return look_up(format.book, codes) * scale
    values = codes.astype(jnp.float32)
    return (values if zero is None else values - zero) * scale


def look_up(book: np.ndarray, codes: jax.Array) -> jax.Array:
    """book[codes], float32. By selects on TPU, where a gather is slow and fuses with nothing;
    elsewhere it fuses, and the selects would be too many for one loop."""
    if platform() != "tpu":
        at = jnp.asarray(book, jnp.float32).at[codes]
        whole = jax.sharding.get_abstract_mesh().empty
        return at.get(
            mode="clip", **({} if whole else {"out_sharding": jax.typeof(codes).sharding})
        )
    values = list(np.float32(book))
    while len(values) > 1:
        odd = (codes & 1) == 1
        values = [jnp.where(odd, high, low) for low, high in zip(values[::2], values[1::2])]
        codes = codes >> 1
    return values[0]


def pack(codes: jax.Array, axis: int = -1) -> jax.Array:
    """Codes of 4 bits, one an element, as bytes of two; the axis is that of a group and halves."""
    low, high = jnp.split(codes.astype(jnp.uint8) & 15, 2, axis=axis)
    return low | (high << 4)


def unpack(format: Format, packed: jax.Array, axis: int = -1) -> jax.Array:
    """What `pack` packed, uint8 or for int4 int8; the codes themselves for formats of 8 bits."""
    if format.bits == 8:
        return packed
    codes = jnp.concatenate([packed & 15, packed >> 4], axis=axis)
    return (codes ^ 8).astype(jnp.int8) - 8 if format.dtype == "int4" else codes


def _encode_affine(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    low, high = (reduce(x, axis=-1, keepdims=True) for reduce in (jnp.min, jnp.max))
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)  # zero has a code of its own
    top = float(jnp.iinfo(dtype).max)
    scale = (high - low) / top
    zero = jnp.round(-low * _reciprocal(scale))
    codes = jnp.clip(jnp.round(x * _reciprocal(scale)) + zero, 0, top)
    return codes.astype(jnp.uint8), scale, zero


def _nearest(x: jax.Array, book: np.ndarray) -> jax.Array:
    """The code whose value is nearest: how many midpoints of the sorted book lie strictly below
    `x`."""
    order = np.argsort(book, kind="stable")
    values = book[order]
    middles = (values[1:] + values[:-1]) / np.float32(2)
    ranks = sum((x > middle).astype(jnp.int32) for middle in middles)
    return jnp.asarray(order, jnp.int32)[ranks]


def _top(dtype: jnp.dtype) -> float:
    """The largest value of a type; integers symmetric, without their lowest."""
    return (
        float(ml_dtypes.finfo(dtype).max)
        if jnp.issubdtype(dtype, jnp.floating)
        else float(jnp.iinfo(dtype).max)
    )


def _reciprocal(x: jax.Array) -> jax.Array:
    """1 / x, and 0 for a group that is all zero."""
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))
