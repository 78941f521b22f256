"""Experts in MXFP4, as gpt-oss is published: in place of a tensor NAME [E, I, O]

    NAME_blocks   uint8 [E, O, I / 32, 16]: two e2m1 codes a byte, the first in the low half
    NAME_scales   uint8 [E, O, I / 32]: e8m0, an exponent for each block of 32 codes

(Open Compute Project, MX specification 1.0, sections 5.2 and 5.3). They become leaves without ever
being dense and are written as they were read; `read` returns a dense tensor where one is needed,
whose numbers are exact in bfloat16. (Products with a leaf take the least scale, 2^-127, for 0, as
chips do with numbers so small.)

Letters: E experts, I inputs, O outputs, g blocks of 32 inputs, j the codes or bytes of a block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from research.interop.storage.checkpoint import Checkpoint, specs_by_path, stacked_axes
from research.interop.storage.layout import (
    Piece,
    Rule,
    fused,
    inverse,
    letter_sizes,
    parse,
    pieces,
    rearrange,
    shape,
)
from research.interop.storage.parameter import Codes
from research.interop.storage.safetensors import Parts
from research.interop.storage.tensors import Tensor, Tensors
from research.models.config import ModelConfig
from research.weights.formats import FORMATS
from research.weights.quantized import Quantized, quantize_array

FORMAT, BLOCK = "mxfp4", 32
BLOCKS, SCALES = "_blocks", "_scales"
# The modules that the published files name as those left alone.
_SETTINGS = {
    "quant_method": FORMAT,
    "modules_to_not_convert": [
        *("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")
    ],
}
_NAN = 255  # of the exponents


@dataclass(frozen=True)
class Mxfp4Tensors:
    """The tensors of a folder. One in MXFP4 appears under its own name, with the shape of what it
    stands for and in bfloat16; its blocks and scales are left out of `names`."""

    names: Mapping[str, Tensor]
    packed: frozenset[str]
    _tensors: Tensors

    def read(self, name: str) -> np.ndarray:
        """A whole tensor, one in MXFP4 dequantized."""
        if name not in self.packed:
            return self._tensors.read(name)
        blocks, scales = self.stored(name)
        dense = np.empty(self.names[name].shape, ml_dtypes.bfloat16)
        # One expert at a time in float32.
        for expert, (codes_OgJ, scales_Og) in enumerate(zip(blocks, scales)):
            values = FORMATS[FORMAT].book[_apart(codes_OgJ)]
            exact = np.ldexp(values, scales_Og[..., None].astype(np.int32) - 127)
            dense[expert] = exact.reshape(len(exact), -1).T
        return dense

    def stored(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(blocks, scales) as they are stored. ValueError for a block that is NaN."""
        blocks, scales = (self._tensors.read(name + part) for part in (BLOCKS, SCALES))
        if bad := int(np.count_nonzero(scales == _NAN)):
            raise ValueError(
                f"{name}{SCALES} has {bad:,} of {scales.size:,} blocks that are NaN; fetch it again"
            )
        return blocks, scales


def open_mxfp4(tensors: Tensors) -> Mxfp4Tensors:
    """The tensors of a folder in MXFP4. ValueError for blocks without scales, and for either in
    another shape or type."""
    names, packed = dict(tensors.names), []
    for name in [name for name in names if name.endswith(BLOCKS)]:
        plain = name.removesuffix(BLOCKS)
        blocks, scales = names.pop(name), names.pop(plain + SCALES, None)
        if scales is None:
            raise ValueError(f"the checkpoint has no tensor {plain}{SCALES}; fetch it again")
        if (
            (blocks.dtype, scales.dtype) != ("uint8", "uint8")
            or len(blocks.shape) != 4
            or blocks.shape != (*scales.shape, BLOCK // 2)
        ):
            raise ValueError(
                f"{name} is {blocks.dtype} {list(blocks.shape)} beside scales {scales.dtype} "
                f"{list(scales.shape)}; wanted uint8 [E, O, I / {BLOCK}, {BLOCK // 2}] beside "
                "[E, O, I / 32]"
            )
        E, O, g = scales.shape
        names[plain] = Tensor((E, g * BLOCK, O), "bfloat16")
        packed.append(plain)
    return Mxfp4Tensors(names, frozenset(packed), tensors)


def read_codes(
    c: ModelConfig, rules: Sequence[Rule], tensors: Mxfp4Tensors, actual: Mapping[str, str]
) -> dict[str, Codes]:
    """The parameters in MXFP4 by path of our tree, as leaves; `actual` has the name in the file of
    each tensor."""
    sizes, last = letter_sizes(c), {}
    found: dict[str, dict[tuple[int, ...], tuple[Piece, int]]] = {}
    for piece in _pieces(c, rules):
        if actual.get(piece.name, piece.name) in tensors.packed:
            for part, path in enumerate(piece.paths):
                for expert in range(c.experts):
                    found.setdefault(path, {})[(*piece.index, expert)] = piece, part

    def _stored(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        # All experts of a layer are in one tensor and are asked for one after the other.
        if piece.name not in last:
            last.clear()
            last[piece.name] = tensors.stored(actual.get(piece.name, piece.name))
        return last[piece.name]

    def _reader(path: str) -> Callable[[tuple[int, ...]], Quantized]:
        def _read(index: tuple[int, ...]) -> Quantized:
            piece, part = found[path][index]
            blocks, scales = (whole[index[-1]] for whole in _stored(piece))
            return _leaf(blocks, scales, piece, part, sizes)

        return _read

    return {path: Codes(dict.fromkeys(held, FORMAT), _reader(path)) for path, held in found.items()}


def quantized(checkpoint: Checkpoint, rules: Sequence[Rule]) -> Checkpoint:
    """The checkpoint with its experts in MXFP4, each quantized when it is read. ValueError for a
    model whose class has no experts in MXFP4, and for inputs that blocks do not divide."""
    held = {path for piece in _pieces(checkpoint.config, rules) for path in piece.paths}
    if not held or checkpoint.config.d_model % BLOCK or checkpoint.config.d_ff % BLOCK:
        raise ValueError(
            f"{FORMAT} is for the experts of gpt-oss, in blocks of {BLOCK}; take --dtype=bfloat16"
        )

    def _codes(path: str) -> Codes:
        parameter = checkpoint.parameters[path]

        def _read(index: tuple[int, ...]) -> Quantized:
            return quantize_array(parameter.read(index).astype(np.float32), FORMAT, inputs=1)

        return Codes(dict.fromkeys(parameter.indices(), FORMAT), _read)

    return replace(checkpoint, codes={path: _codes(path) for path in held})


def written_packed(
    checkpoint: Checkpoint, rules: Sequence[Rule]
) -> tuple[dict[str, dict[str, tuple[Tensor, Parts]]], dict[str, Any]]:
    """(by name of each tensor whose parameters are all in MXFP4, the tensors that take its place;
    what config.json then says beside)."""
    sizes, streams = letter_sizes(checkpoint.config), {}
    for piece in _pieces(checkpoint.config, rules):
        codes = [checkpoint.codes.get(path) for path in piece.paths]
        if all(one is not None and set(one.forms.values()) == {FORMAT} for one in codes):
            streams[piece.name] = _streams(piece, codes, sizes)
    return streams, {"quantization_config": _SETTINGS} if streams else {}


def _streams(
    piece: Piece, codes: Sequence[Codes], sizes: Mapping[str, int]
) -> dict[str, tuple[Tensor, Parts]]:
    """The blocks and scales of a tensor, an expert at a time."""
    _, inputs, outputs = (shape([group], sizes)[0] for group in parse(piece.pattern)[0])
    E, g = sizes["E"], inputs // BLOCK

    def _made(of: Callable[[Quantized], Any], last: Callable[[np.ndarray], np.ndarray]) -> Parts:
        def _parts() -> Iterator[np.ndarray]:
            for expert in range(E):
                arrays = [np.asarray(of(one.read((*piece.index, expert)))) for one in codes]
                ours = fused(arrays, piece.pattern)
                j = arrays[0].shape[1]
                yield last(rearrange(ours, inverse(_blocked(piece)), {**sizes, "g": g, "j": j}))

        return _parts

    blocks, scales = Tensor((E, outputs, g, BLOCK // 2), "uint8"), Tensor((E, outputs, g), "uint8")
    return {
        piece.name + BLOCKS: (blocks, _made(lambda leaf: leaf.codes, _their_bytes)),
        piece.name + SCALES: (scales, _made(lambda leaf: leaf.scale, lambda x_Og1: x_Og1)),
    }


def _leaf(
    blocks_Ogj: np.ndarray, scales_Og: np.ndarray, piece: Piece, part: int, sizes: Mapping[str, int]
) -> Quantized:
    """One of the weights that an expert's blocks and scales hold, as a leaf of numpy arrays."""

    def _ours(x_Ogj: np.ndarray) -> np.ndarray:
        counts = {"g": x_Ogj.shape[1], "j": x_Ogj.shape[2]}
        moved = rearrange(x_Ogj, _blocked(piece), {**sizes, **counts})
        return np.ascontiguousarray(moved[part] if len(piece.paths) > 1 else moved)

    codes, scale = _ours(_our_bytes(blocks_Ogj)), _ours(scales_Og[..., None])
    return Quantized(codes, scale, None, FORMAT, (scales_Og.shape[1] * BLOCK,), 1)


def _blocked(piece: Piece) -> str:
    """The pattern from an expert's blocks [O, g, j] to ours: "(F 2) g j -> 2 g j F" where that of
    the tensor is "E D (F 2) -> 2 E D F"."""
    (experts, inputs, outputs), right = parse(piece.pattern)
    ours = ["g j" if group == inputs else group[0] for group in right if group != experts]
    return f"({' '.join(outputs)}) g j -> {' '.join(ours)}"


def _pieces(c: ModelConfig, rules: Sequence[Rule]) -> Iterator[Piece]:
    """The tensors that hold matrices of all experts of a layer."""
    stacks = {path: spec.shape[: stacked_axes(spec)] for path, spec in specs_by_path(c).items()}
    for piece in pieces(rules, stacks):
        axes = parse(piece.pattern)[0]
        if axes[:1] == (("E",),) and len(axes) == 3:
            yield piece


def _apart(bytes_: np.ndarray) -> np.ndarray:
    """The codes of stored bytes, in order: the first of a byte is its low half."""
    return np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(*bytes_.shape[:-1], -1)


def _our_bytes(bytes_: np.ndarray) -> np.ndarray:
    """Stored bytes as `research.weights.packing` has them: code j beside code j + 16."""
    codes, half = _apart(bytes_), BLOCK // 2
    return codes[..., :half] | codes[..., half:] << 4


def _their_bytes(bytes_: np.ndarray) -> np.ndarray:
    """The inverse of `_our_bytes`."""
    codes = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1)
    return codes[..., ::2] | codes[..., 1::2] << 4
