"""Leaves as the fields of a `qwix.QArray`, which tokamax's kernels, tunix and MaxText take, and
back.

    original = (qvalue - zero_point) * scale,   each value of scale for a tile of qvalue     (qwix/_src/core/qarray.py)

The inputs are one axis there, as in the leaf: an output kernel [N, H, D] is a qvalue [N H, D] with
a scale [N H / G, D].
"""

from typing import Any

import jax.numpy as jnp

from research.weights.formats import FORMATS, pack, unpack
from research.weights.quantized import Quantized

# qwix's names of the formats that both have. Its fp4 is OCP's E2M1, bitsandbytes' is another.
_QTYPES = {
    "int8": "int8",
    "int4": "int4",
    "uint4": "uint4",
    "nf4": "nf4",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}


def to_qarray(w: Quantized) -> dict[str, Any]:
    """qvalue, scale, zero_point and qtype: `qwix.QArray(**to_qarray(w))`. Codes of 4 bits come in
    JAX's own types of 4 bits, scales plain. ValueError for FP4, which qwix has not."""
    if w.format not in _QTYPES:
        raise ValueError(f"{w.format} is no type of qwix's; it has {', '.join(_QTYPES)}")
    chosen, at = FORMATS[w.format], w.codes.ndim - w.after - 2
    codes = unpack(chosen, w.codes, at + 1).astype(chosen.dtype)
    shape = (*codes.shape[:at], codes.shape[at] * codes.shape[at + 1], *codes.shape[at + 2 :])
    zero = (
        None if w.zero is None else jnp.squeeze(w.zero, at + 1).astype(chosen.dtype)
    )  # a code, as there
    scale = jnp.squeeze(w.plain_scale(), at + 1)
    return {
        "qvalue": codes.reshape(shape),
        "scale": scale,
        "zero_point": zero,
        "qtype": _QTYPES[w.format],
    }


def from_qarray(array: Any, *, stacked: int = 0) -> Quantized:
    """The leaf of a QArray [..., I, ...] whose inputs are the axis behind the `stacked` ones and
    tiled alone, with float scales. ValueError for another type, and for tiles along other axes."""
    formats = {qtype: name for name, qtype in _QTYPES.items()}
    qtype = str(array.qtype if isinstance(array.qtype, str) else jnp.dtype(array.qtype))
    if qtype not in formats:
        raise ValueError(
            f"a QArray of type {qtype!r} has no leaf; wanted one of {', '.join(formats)}"
        )
    name, (shape, scales) = formats[qtype], (array.qvalue.shape, array.scale.shape)
    if any(size != own for axis, (size, own) in enumerate(zip(scales, shape)) if axis != stacked):
        raise ValueError(
            f"the scales {scales} of a QArray {shape} must be tiles of axis {stacked} alone"
        )
    groups = scales[stacked]
    grouped = array.qvalue.reshape(
        *shape[:stacked], groups, shape[stacked] // groups, *shape[stacked + 1 :]
    )
    chosen = FORMATS[name]
    codes = (
        pack(grouped.astype("int8" if chosen.dtype == "int4" else "uint8"), stacked + 1)
        if chosen.bits == 4
        else grouped
    )
    parts = (None if x is None else x.astype(jnp.float32) for x in (array.scale, array.zero_point))
    scale, zero = (None if x is None else jnp.expand_dims(x, stacked + 1) for x in parts)
    return Quantized(codes, scale, zero, name, (shape[stacked],), len(shape) - stacked - 1)
