"""Experts in ggml's type MXFP4, read as leaves and written from them code for code.

A block of 32 inputs is 17 bytes: an e8m0 exponent and 16 bytes, byte j with the e2m1 code of
element j in its low half and that of element j + 16 in its high half (struct block_mxfp4 of
ggml-common.h), which is how our leaves pack a group of 32.

Letters: E experts, O outputs, I inputs, g blocks of inputs, j the bytes of a block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from research.interop.gguf.file import Gguf
from research.interop.huggingface.mxfp4 import BLOCK, FORMAT
from research.interop.storage.checkpoint import specs_by_path, stacked_axes
from research.interop.storage.layout import Piece, Rule, parse, pieces
from research.interop.storage.parameter import Codes
from research.models.config import ModelConfig
from research.weights.quantized import Quantized

TYPE = "MXFP4"
# Such as "E F D -> E D F": a matrix an expert, the inputs last.
_OF_EXPERTS = 3
_NAN = 255  # of the exponents


def read_codes(c: ModelConfig, rules: Sequence[Rule], gguf: Gguf) -> dict[str, Codes]:
    """The experts in MXFP4 by path of our tree. Matrices that are not of experts are read dense."""
    found: dict[str, dict[tuple[int, ...], Piece]] = {}
    for piece in _pieces(c, rules):
        if gguf.types.get(piece.name) == TYPE:
            for expert in range(c.experts):
                found.setdefault(piece.paths[0], {})[(*piece.index, expert)] = piece

    def _reader(path: str) -> Callable[[tuple[int, ...]], Quantized]:
        def _read(index: tuple[int, ...]) -> Quantized:
            name = found[path][index].name
            [blocks_Ogb] = gguf.read_stored(name, index[-1], index[-1] + 1)
            if bad := int(np.count_nonzero(blocks_Ogb[..., 0] == _NAN)):
                raise ValueError(f"{gguf.path}: {name} has {bad:,} blocks that are NaN")
            return _leaf(blocks_Ogb)

        return _read

    return {path: Codes(dict.fromkeys(held, FORMAT), _reader(path)) for path, held in found.items()}


def written(
    c: ModelConfig, rules: Sequence[Rule], codes: Mapping[str, Codes]
) -> dict[str, Callable[[], Iterator[np.ndarray]]]:
    """By name of each tensor whose parameters are all in MXFP4: what yields its blocks, uint8, an
    expert at a time."""
    found = {}
    for piece in _pieces(c, rules):
        held = codes.get(piece.paths[0])
        if held is not None and set(held.forms.values()) == {FORMAT}:
            found[piece.name] = _maker(held, piece, c.experts)
    return found


def _maker(held: Codes, piece: Piece, experts: int) -> Callable[[], Iterator[np.ndarray]]:
    def _make() -> Iterator[np.ndarray]:
        for expert in range(experts):
            yield _blocks(held.read((*piece.index, expert)))

    return _make


def _leaf(blocks_Ogb: np.ndarray) -> Quantized:
    """An expert's blocks as a leaf [I, O] of numpy arrays."""
    codes_gjO = np.ascontiguousarray(np.moveaxis(blocks_Ogb[..., 1:], 0, -1))
    scale_g1O = np.ascontiguousarray(np.moveaxis(blocks_Ogb[..., :1], 0, -1))
    return Quantized(codes_gjO, scale_g1O, None, FORMAT, (len(codes_gjO) * BLOCK,), 1)


def _blocks(leaf: Quantized) -> np.ndarray:
    """The inverse of `_leaf`."""
    codes, scale = np.asarray(leaf.codes), np.asarray(leaf.scale)
    return np.moveaxis(np.concatenate([scale, codes], axis=1), -1, 0)


def _pieces(c: ModelConfig, rules: Sequence[Rule]) -> Iterator[Piece]:
    """The tensors that hold a matrix of every expert of a layer."""
    stacks = {path: spec.shape[: stacked_axes(spec)] for path, spec in specs_by_path(c).items()}
    for piece in pieces(rules, stacks):
        groups = parse(piece.pattern)[0]
        # Two matrices in one tensor are read dense.
        if groups[0] == ("E",) and len(groups) == _OF_EXPERTS and len(piece.paths) == 1:
            yield piece
