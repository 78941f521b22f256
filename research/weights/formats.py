"""Number formats of quantized weights: groups of values to codes and scales, and back, all in
float32.

Groups lie along the last axis, [..., G], when they are encoded; codes have the same shape, scale
and zero point are [..., 1]. A format is one row of `FORMATS` and needs nothing else. Codes of
three bits, from -3 to 3, would be

    Format("int3", bits=3, codes="integer", group=32, error=0.5 / 3)

Codes are of five kinds, where `top` is the largest value that a code stands for at scale 1:

    integer    x = code * scale            scale = max |x| / top       codes in [-top, top]
    float      x = code * scale            scale = max |x| / top       codes are numbers of `dtype`
    affine     x = (code - zero) * scale   scale = (max x - min x) / (2^bits - 1)
    book       x = book[code] * scale      scale = max |x| / top       the nearest entry

The last equals bitsandbytes to the bit: values are multiplied with the scale's reciprocal, and ties
go to the lower code.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from research.devices.backend import platform
from research.ops.kernels.codes import select
from research.ops.lookup import look_up, reciprocal
from research.weights import packing
from research.weights.scales import from_exponents, to_exponents

KINDS = ("integer", "float", "affine", "offset", "book")
SCALES = ("float32", "double", "e8m0")

# arXiv:2305.14314, appendix E: quantiles of a normal distribution, with an exact zero.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
# bitsandbytes' FP4 by bit pattern. It is not the E2M1 of the Open Compute Project: the smallest
# step is finer.
# Index = bit pattern: sign, then 3 bits in bitsandbytes' own order, which is not sorted.
_FP4 = (0.0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3)
FP4 = tuple(value / 12 for value in _FP4)
# The E2M1 of the Open Compute Project, by bit pattern (MX specification 1.0, section 5.3.3).
E2M1 = (0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)


@dataclass(frozen=True)
class Format:
    """One number format.

    bits     bits of one code, 1 to 8
    codes    kind of the codes, one of `KINDS`
    group    values that share a scale; 0 for all inputs of an output
    error    bound of |x - decode(encode(x))|, in units of the largest |x| of its group
    scales   how scales are stored: "float32", "double" (8 bits, quantized in turn, see
             research/weights/scales.py), or "e8m0" (8 bits, powers of two)
    dtype    the type of the codes of kind "float"
    entries  the values of the codes of kind "book", 2^bits of them
    qtype    the format's name in `qwix`; "" where qwix does not have it
    """

    name: str
    bits: int
    codes: str
    group: int
    error: float
    scales: str = "float32"
    dtype: str = ""
    entries: tuple[float, ...] = ()
    qtype: str = ""

    def __post_init__(self):
        for field, known in (("codes", KINDS), ("scales", SCALES)):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"format {self.name}: {field}={getattr(self, field)!r} is none of {known}"
                )
        if not 1 <= self.bits <= 8 or (self.codes == "float" and self.bits != 8):
            raise ValueError(f"format {self.name}: bits={self.bits} must be 1 to 8, 8 for floats")
        if self.codes == "book" and len(self.entries) != 2**self.bits:
            raise ValueError(
                f"format {self.name}: {len(self.entries)} entries for codes of {self.bits} bits; "
                f"give {2**self.bits}"
            )

    @property
    def storage(self) -> str:
        """Type of the array that holds the codes: int8 or a float8, and uint8 for packed or
        unsigned codes."""
        if self.codes == "float":
            return self.dtype
        return "int8" if self.bits == 8 and self.codes == "integer" else "uint8"

    @property
    def book(self) -> np.ndarray | None:
        """The values of the codes, float32 [2^bits]; None for a format without a book."""
        return _book(self) if self.codes == "book" else None

    @property
    def top(self) -> float:
        """The largest value that a code stands for at scale 1; 127 for int8, which leaves out -128
        so that it is symmetric."""
        if self.codes == "book":
            return max(map(abs, self.entries))
        if self.codes == "float":
            return float(ml_dtypes.finfo(self.dtype).max)
        # A signed code spends one bit on its sign: 127 of 8 bits, 7 of 4. Affine codes are 0 to
        # 15.
        return float(2 ** (self.bits - (self.codes == "integer")) - 1)

    @property
    def has_kernel(self) -> bool:
        """True if `research.ops.kernels.quantized_matmul` can read the codes. It takes uint8 as two
        4-bit codes and has no zero points."""
        return not self.has_zero and (self.bits == 4 or self.storage != "uint8")

    @property
    def has_zero(self) -> bool:
        """True if each group has a zero point beside its scale."""
        return self.codes in ("affine", "offset")


FORMATS = {
    format.name: format
    for format in (
        # Bounds of the rounding error, relative to the largest value of the group: what a test of
        # any format, also one added from outside, is held against.
        # Half a step of a code.
        Format("int8", 8, "integer", 0, error=0.5 / 127, qtype="int8"),
        Format("int4", 4, "integer", 64, error=0.5 / 7, qtype="int4"),
        # One step, of a range that may be twice the largest value.
        Format("uint4", 4, "affine", 64, error=1 / 15, qtype="uint4"),
        # Half the widest gaps of the books, 0.30 and 1/3, and a 250th for the scales' own rounding.
        Format("nf4", 4, "book", 64, error=0.155, scales="double", entries=NF4, qtype="nf4"),
        Format("fp4", 4, "book", 64, error=0.17, scales="double", entries=FP4),
        # Scales are powers of two, and values of 6 to 8 times a scale are cut to 6.
        Format("mxfp4", 4, "book", 32, error=0.25, scales="e8m0", entries=E2M1),
        # e4m3 keeps 4 bits of a value, e5m2 keeps 3. Their error is relative to the value itself,
        # so only the largest of a group can reach the bound.
        Format(
            "fp8_e4m3", 8, "float", 0, error=2**-4, dtype="float8_e4m3fn", qtype="float8_e4m3fn"
        ),
        Format("fp8_e5m2", 8, "float", 0, error=2**-3, dtype="float8_e5m2", qtype="float8_e5m2"),
    )
}

# What checkpoints of other programs hold beside these, such as GPTQ's 3 bits and MLX's offsets:
# read as they are, and not offered for quantizing.
STORED = {
    format.name: format
    for bits in (2, 3, 4, 5, 6, 8)
    for format in (
        Format(f"uint{bits}", bits, "affine", 64, error=1 / (2**bits - 1)),
        Format(f"offset{bits}", bits, "offset", 64, error=1 / (2**bits - 1)),
    )
}


def stored_format(name: str) -> Format:
    """The format of a leaf, which may be one that is only read."""
    return FORMATS[name] if name in FORMATS else STORED[name]


def encode(format: Format, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(codes [..., G], scale [..., 1], zero point [..., 1] or None) of groups `x` [..., G]. Only
    affine and offset formats have a zero point.

    Codes are one for each element, not packed: int8 if signed, uint8 if not, or the format's float
    type. Scales are float32 values that the format can store, except under double quantization,
    which rounds them later.
    """
    x = x.astype(jnp.float32)
    if format.has_zero:
        # Their range need not be symmetric about 0: they need the minimum as well.
        return (_encode_affine if format.codes == "affine" else _encode_offset)(x, format.top)
    absmax = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = _scale(format, absmax)
    if format.codes == "book":
        return _nearest(x * reciprocal(scale), _book(format)).astype(jnp.uint8), scale, None
    if format.scales == "e8m0":
        # The scale is rounded down to a power of two, so the largest values overflow the codes.
        scaled = jnp.clip(x * reciprocal(scale), -format.top, format.top)
    else:
        # As torch evaluates top / absmax: the reciprocal first, then the product.
        scaled = x * (reciprocal(absmax) * format.top)
    if format.codes == "float":
        return scaled.astype(format.dtype), scale, None
    return jnp.round(scaled).astype(jnp.int8), scale, None


def decode(format: Format, codes: jax.Array, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
    """The values of unpacked codes [..., G], float32; `scale` and `zero` broadcast against them."""
    if format.codes == "book":
        return _book_values(_book(format), codes) * scale
    values = codes.astype(jnp.float32)
    if format.codes == "offset" and zero is not None:
        return values * scale + zero
    return (values if zero is None else values - zero) * scale


def pack(format: Format, codes: jax.Array, axis: int = -1) -> jax.Array:
    """Codes, one for each element, as they are stored in `format.storage`; the values of a group
    lie along `axis`, which shrinks to bits / 8 of its size."""
    return packing.pack(codes, format.bits, axis)


def unpack(format: Format, packed: jax.Array, axis: int = -1) -> jax.Array:
    """The codes that `pack` packed, as `encode` gives them."""
    if format.bits == 8:
        return packed
    codes = packing.unpack(packed, format.bits, axis)
    if format.codes != "integer":
        return codes
    half = 2 ** (format.bits - 1)  # flips the sign bit, so that subtracting it extends the sign
    return (codes ^ half).astype(jnp.int8) - half


def all_codes(format: Format) -> jax.Array:
    """Every code that `encode` can return, in order; for formats of less than 8 bits."""
    if format.codes == "integer":
        return jnp.arange(-int(format.top), int(format.top) + 1, dtype=jnp.int8)
    return jnp.arange(2**format.bits, dtype=jnp.uint8)


def _book(format: Format) -> np.ndarray:
    return np.array(format.entries, np.float32)


def _book_values(book: np.ndarray, codes: jax.Array) -> jax.Array:
    """book[codes], float32. By selects on TPU, where a gather is slow and fuses with nothing;
    elsewhere it fuses, and the selects would be too many for one loop."""
    return select(book, codes) if platform() == "tpu" else look_up(book, codes)


def _scale(format: Format, absmax: jax.Array) -> jax.Array:
    """The scale of groups with these largest values, as the format stores it. A power of two is the
    largest up to max |x| over the largest power of two among the codes' values, so values above
    `top` are cut to it (Open Compute Project, MX specification 1.0, section 6.3)."""
    if format.scales == "e8m0":
        return from_exponents(to_exponents(absmax / 2 ** math.floor(math.log2(format.top))))
    return absmax / format.top


def _encode_affine(x: jax.Array, top: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    low, high = (reduce(x, axis=-1, keepdims=True) for reduce in (jnp.min, jnp.max))
    # A group of one sign would otherwise have a range that leaves out 0.
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)  # zero has a code of its own
    scale = (high - low) / top
    # Rounded, so that 0 is exactly a code (padding and pruned weights stay 0).
    zero = jnp.round(-low * reciprocal(scale))
    codes = jnp.clip(jnp.round(x * reciprocal(scale)) + zero, 0, top)
    return codes.astype(jnp.uint8), scale, zero


def _encode_offset(x: jax.Array, top: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    low, high = (reduce(x, axis=-1, keepdims=True) for reduce in (jnp.min, jnp.max))
    scale = (high - low) / top
    codes = jnp.clip(jnp.round((x - low) * reciprocal(scale)), 0, top)
    return codes.astype(jnp.uint8), scale, low


def _nearest(x: jax.Array, book: np.ndarray) -> jax.Array:
    """The code whose value is nearest: how many midpoints of the sorted book lie strictly below
    `x`."""
    order = np.argsort(book, kind="stable")
    values = book[order]
    # In float32 throughout, since a midpoint in float64 can decide a tie the other way than
    # bitsandbytes does.
    middles = (values[1:] + values[:-1]) / np.float32(2)
    # A sum of comparisons instead of a search: 15 elementwise operations that fuse into one pass,
    # with no gather and no data-dependent branch.
    ranks = sum((x > middle).astype(jnp.int32) for middle in middles)
    return jnp.asarray(order, jnp.int32)[ranks]
