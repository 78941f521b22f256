"""Quantized leaves of our tree as matrices [out, in] in bitsandbytes' order, and those as tensors
of a file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.interop.bitsandbytes.matrices import STATE
from research.interop.storage.layout import BAR, rearrange
from research.interop.storage.modules import Module
from research.weights.dynamic_map import DYNAMIC_MAP
from research.weights.formats import FORMATS, unpack
from research.weights.quantized import Quantized
from research.weights.scales import BLOCK, QuantizedScales

QUANTIZABLE = ("nf4", "fp4", "int8")
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of 4-bit formats, those of its kernels
# `slice(path, index)` returns that slice of a parameter, a quantized leaf or an array.
Slice = Callable[[str, tuple[int, ...]], Any]


@dataclass(frozen=True)
class Side:
    """A matrix [out, in] in the file's order.

    codes   [out, in] for 8 bits, [blocks, block] for 4 bits, one code in each element
    scale   float32 [out] or [blocks], or a row of `QuantizedScales`
    block   values that share a scale
    double  whether the scales are `QuantizedScales`
    """

    format: str
    codes: np.ndarray
    scale: Any
    block: int
    double: bool = False


def join_leaves(module: Module, slices: Slice, sizes: Mapping[str, int]) -> Side:
    """The matrix of a module; the weights of a fused module are joined along its outputs.
    ValueError if they are quantized differently, or in a way that bitsandbytes does not have."""
    # One scale layout for the whole matrix: the file has one quant_state for it.
    leaves = [slices(path, module.index) for path in module.paths]
    first = leaves[0]
    if any(
        (leaf.format, leaf.group, type(leaf)) != (first.format, first.group, type(first))
        for leaf in leaves
    ):
        raise ValueError(
            f"the weights of {module.name} are quantized in several ways; bitsandbytes has one for "
            "all of them"
        )
    if first.format not in QUANTIZABLE:
        raise ValueError(
            f"{module.name} is quantized as {first.format}; bitsandbytes has "
            f"{', '.join(QUANTIZABLE)}"
        )
    if first.flat:
        return _flat_side(leaves)
    # [out, groups, G], so outputs can be joined; flattened, this is bitsandbytes' order of
    # blocks.
    codes = np.concatenate([_theirs(_codes(leaf), module, sizes) for leaf in leaves])
    # Scales stay doubly quantized if the rows join without a seam, else they are written as
    # float32: the same numbers in more bytes.
    scale = _joined(leaves)
    double = scale is not None
    if scale is None:
        plain = [np.asarray(jax.tree.map(jnp.asarray, leaf).plain_scale()) for leaf in leaves]
        scale = np.concatenate([_theirs(one, module, sizes) for one in plain]).reshape(-1)
    block = first.group
    if first.format == "int8":
        # Rows [out, groups, ...]: more than one group is more than one scale for a row.
        if codes.shape[1] != 1:
            raise ValueError(
                f"{module.name} has int8 in groups of {block}; bitsandbytes has one scale a row"
            )
        return Side("int8", codes[:, 0], scale, block)
    if block not in BLOCKS:
        raise ValueError(
            f"{module.name} is in blocks of {block} values; bitsandbytes has "
            f"{', '.join(map(str, BLOCKS))}: quantize with one of them as the group"
        )
    return Side(first.format, codes.reshape(-1, block), scale, block, double)


def _codes(leaf: Quantized) -> np.ndarray:
    """The leaf's codes, one in each element, [..., I / G, G, ...]."""
    at = leaf.codes.ndim - leaf.after - 2
    return np.asarray(unpack(FORMATS[leaf.format], jnp.asarray(leaf.codes), at + 1))


def _theirs(x: np.ndarray, module: Module, sizes: Mapping[str, int]) -> np.ndarray:
    """A leaf's codes or scales as rows [out, groups, ...]; the inverse of `read._ours`."""
    if BAR in module.outputs:
        raise ValueError(
            f"{module.name} joins weights of different sizes, which is not supported quantized; "
            "write it without --bitsandbytes"
        )
    left, right = module.outputs.split(" -> ")
    outputs = right.split()[len(module.paths) > 1 :]
    at = len(outputs) if module.table else 0
    order = [*outputs, "g", "j"] if module.table else ["g", "j", *outputs]
    groups = {"g": x.shape[at], "j": x.shape[at + 1]}
    return rearrange(x, f"{' '.join(order)} -> ({' '.join(outputs)}) g j", {**sizes, **groups})


def _joined(leaves: list[Quantized]) -> QuantizedScales | None:
    """Doubly quantized scales of several weights as one row. None if they are floats, have
    different offsets, or if one that is not the last ends within a block."""
    if any(leaf.scales != "double" for leaf in leaves):
        return None
    scales = [leaf.scale for leaf in leaves]
    # A block of scales that is cut at a seam would get neighbours with another absmax.
    whole = all(len(scale.codes) % BLOCK == 0 for scale in scales[:-1])
    if not whole or any((scale.offset != scales[0].offset).any() for scale in scales):
        return None
    return QuantizedScales(
        np.concatenate([scale.codes for scale in scales]),
        np.concatenate([scale.absmax for scale in scales]),
        scales[0].offset,
    )


def _flat_side(leaves: list[Any]) -> Side:
    """Flat weights one after the other, as they were before they were split: neighbours may share a
    block, and then also its scale."""
    # Where a leaf begins inside a block, the codes before `start` are its neighbour's.
    block = leaves[0].group
    values = [
        np.asarray(unpack(FORMATS[leaf.format], jnp.asarray(leaf.codes))).reshape(-1)
        for leaf in leaves
    ]
    codes = np.concatenate(
        [v[leaf.start : leaf.start + leaf.size] for v, leaf in zip(values, leaves)]
    )
    scale = _joined(leaves)
    double = scale is not None
    if scale is None:
        scale = np.zeros(-(-len(codes) // block), np.float32)
        # Where neighbours share a block they have the same scale for it, so writing it twice is
        # right.
        begin = 0
        for leaf in leaves:
            plain = np.asarray(jax.tree.map(jnp.asarray, leaf).plain_scale())[:, 0]
            scale[begin // block : begin // block + len(plain)] = plain
            begin += leaf.size
    return Side(leaves[0].format, codes, scale, block, double)


def matrix_tensors(
    name: str, side: Side, shape: tuple[int, ...], dtype: str
) -> dict[str, np.ndarray]:
    """The tensors of a file for a matrix [out, in], by name. `shape` is the matrix's, `dtype` the
    type that it had before."""
    if side.format == "int8":
        # The file has the magnitude that 127 stands for, not the size of a step.
        largest = side.scale * np.float32(127)
        module = name.removesuffix(".weight")
        return {
            name: side.codes,
            f"{module}.SCB": largest,
            f"{module}.weight_format": np.array(0, np.uint8),
        }
    flat = side.codes.reshape(-1)
    # bitsandbytes fills the last byte of an odd number of codes.
    flat = np.pad(flat, (0, len(flat) % 2))
    # What bitsandbytes' QuantState.from_dict reads.
    state: dict[str, Any] = {
        "quant_type": side.format,
        "blocksize": side.block,
        "dtype": dtype,
        "shape": list(shape),
    }
    tensors = {
        # Neighbours share a byte, the first in its high half, and the array is a column.
        name: (flat[::2] << 4 | flat[1::2]).astype(np.uint8)[:, None],
        f"{name}.quant_map": FORMATS[side.format].book,
    }
    if side.double:
        offset = float(side.scale.offset[0])
        state |= {"nested_blocksize": BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        tensors |= {
            f"{name}.absmax": side.scale.codes,
            f"{name}.nested_absmax": side.scale.absmax,
            f"{name}.nested_quant_map": DYNAMIC_MAP,
        }
    else:
        tensors[f"{name}.absmax"] = side.scale
    tensors[f"{name}{STATE}{side.format}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return tensors
