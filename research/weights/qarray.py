"""Conversion between `Quantized` leaves and `qwix.QArray`, which tokamax's kernels, tunix and
MaxText take.

    original = (qvalue - zero_point) * scale          (qwix/_src/core/qarray.py)

with one scale for each tile of qvalue. A weight's inputs are one axis there, as in the leaf: an
output kernel [N, H, D] has a qvalue [N H, D] and a scale [N H / G, D].
"""

from typing import Any

import jax.numpy as jnp

from research.weights.formats import FORMATS, Format, pack, stored_format, unpack
from research.weights.quantized import Quantized


def to_qarray(w: Quantized) -> dict[str, Any]:
    """The fields qvalue, scale, zero_point and qtype: `qwix.QArray(**to_qarray(w))`. Codes of 4
    bits are in JAX's int4 or uint4, scales in float32.

    ValueError for a format that qwix does not have, such as bitsandbytes' FP4.
    """
    format, at = stored_format(w.format), w.group_axis
    if not format.qtype:
        raise ValueError(f"{w.format} is no type of qwix's; it has {', '.join(_by_qtype())}")
    dtype = _code_type(format)
    # qwix keeps 4-bit codes in JAX's packed types and not in pairs of its own.
    codes = unpack(format, w.codes, at + 1).astype(dtype)
    shape = (*codes.shape[:at], codes.shape[at] * codes.shape[at + 1], *codes.shape[at + 2 :])
    # qwix holds the zero point in the type of the codes; ours is float32 with an integer value.
    zero = None if w.zero is None else jnp.squeeze(w.zero, at + 1).astype(dtype)
    scale = jnp.squeeze(w.plain_scale(), at + 1)
    return {
        "qvalue": codes.reshape(shape),
        "scale": scale,
        "zero_point": zero,
        "qtype": format.qtype,
    }


def from_qarray(array: Any, *, stacked: int = 0) -> Quantized:
    """The leaf of a QArray [..., I, ...] whose inputs I follow `stacked` leading axes; its scales
    are float32. ValueError for a type without a format here, and for tiles along another axis than
    I."""
    formats = _by_qtype()
    qtype = str(array.qtype if isinstance(array.qtype, str) else jnp.dtype(array.qtype))
    if qtype not in formats:
        raise ValueError(
            f"a QArray of type {qtype!r} has no leaf; wanted one of {', '.join(formats)}"
        )
    format, shape, scales = formats[qtype], array.qvalue.shape, array.scale.shape
    if any(size != own for axis, (size, own) in enumerate(zip(scales, shape)) if axis != stacked):
        raise ValueError(
            f"the scales {scales} of a QArray {shape} must be tiles of axis {stacked} alone"
        )
    # A QArray has no field for the size of its tiles; the number of scales along I gives it.
    groups = scales[stacked]
    grouped = array.qvalue.reshape(
        *shape[:stacked], groups, shape[stacked] // groups, *shape[stacked + 1 :]
    )
    # JAX's 4-bit types become bytes before `pack` packs two of them into one.
    if format.bits < 8:
        grouped = grouped.astype("int8" if format.codes == "integer" else "uint8")
    codes = pack(format, grouped, stacked + 1)
    parts = (None if x is None else x.astype(jnp.float32) for x in (array.scale, array.zero_point))
    scale, zero = (None if x is None else jnp.expand_dims(x, stacked + 1) for x in parts)
    return Quantized(codes, scale, zero, format.name, (shape[stacked],), len(shape) - stacked - 1)


def _by_qtype() -> dict[str, Format]:
    return {format.qtype: format for format in FORMATS.values() if format.qtype}


def _code_type(format: Format) -> str:
    """JAX's type of unpacked codes, as narrow as they are: "int4", "uint4", "float8_e5m2"."""
    if format.codes == "float":
        return format.dtype
    return f"int{format.bits}" if format.codes == "integer" else f"uint{format.bits}"
