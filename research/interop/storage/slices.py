"""A parameter's slices, read from the tensors of a file."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from research.interop.storage.layout import Piece, rearrange
from research.interop.storage.safetensors import SafeTensors
from research.interop.storage.tensors import StoredTensors, Tensors, as_dtype
from research.interop.storage.tiles import Source, Tile, cut, find_run
from research.models.spec import Spec

Index = tuple[int, ...]


@dataclass(frozen=True)
class Slices:
    """A parameter's `read`: called with an index over the stacked axes it returns that slice, and
    `tiles` gives what the slice can be read by instead.

    `sources` has for an index the tensor that holds this slice, and which of the tensor's parts it
    is (a fused tensor has several). If the rule names no {expert}, one tensor holds all experts,
    and the rest of the index selects one of them. A layer without a tensor has what a new norm
    begins with.
    """

    sources: Mapping[Index, tuple[Piece, int]]
    whole: Callable[[Piece], np.ndarray]
    dtype: np.dtype
    spec: Spec
    tensors: Tensors = field(repr=False)
    actual: Mapping[str, str] = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)

    def __call__(self, index: Index) -> np.ndarray:
        known = self._known(index)
        if known is None:
            # Ones or zeros, for which no key is needed.
            shape = self.spec.shape[len(index) :]
            return np.asarray(self.spec.init(None, shape, self.dtype, None))
        piece, part = self.sources[index[:known]]
        values = self.whole(piece)
        values = values[part] if len(piece.paths) > 1 else values
        return values[index[known:]].astype(self.dtype, copy=False)

    def tiles(self, index: Index) -> list[Tile] | None:
        """The tiles that make up the slice `[index]`, in the order of the file; None where it lies
        in no file as it is, or is scattered over its tensor."""
        known = self._known(index)
        if known is None or not isinstance(self.tensors, StoredTensors):
            return None
        piece, part = self.sources[index[:known]]
        chosen = part if len(piece.paths) > 1 else None
        run = find_run(piece.pattern, chosen, index[known:], self.sizes)
        if run is None:
            return None
        return list(
            cut(_source(self.tensors, self.actual[piece.name]), *run, self.sizes, self.dtype)
        )

    def _known(self, index: Index) -> int | None:
        """The length of the longest start of the index that a tensor holds."""
        return next((n for n in range(len(index), -1, -1) if index[:n] in self.sources), None)


@dataclass(frozen=True)
class StoredRows:
    """A parameter's `read` where the tensor `name` of safetensors is the parameter, stacked alike;
    `tiles` as of `Slices`."""

    tensors: SafeTensors
    name: str

    def __call__(self, index: Index) -> np.ndarray:
        return self.tensors.read_row(self.name, index)

    def tiles(self, index: Index) -> list[Tile]:
        """The tiles that fill the slice of this index."""
        tensor = self.tensors.names[self.name]
        sizes = dict(zip(string.ascii_lowercase, tensor.shape))
        same = " ".join(sizes)
        start, pattern = find_run(f"{same} -> {same}", None, index, sizes) or (0, "")
        source = _source(self.tensors, self.name)
        return list(cut(source, start, pattern, sizes, source.dtype))


def _source(tensors: StoredTensors, name: str) -> Source:
    dtype = as_dtype(tensors.names[name].dtype)
    return Source(*tensors.place(name), dtype, partial(tensors.fill, name))


def whole_reader(
    tensors: Tensors, actual: Mapping[str, str], sizes: Mapping[str, int]
) -> Callable[[Piece], np.ndarray]:
    """A function that reads a tensor into our layout. It keeps the last one: a tensor may hold
    several parameters or slices, which are asked for one after the other."""
    last: dict[Piece, np.ndarray] = {}

    def _read(piece: Piece) -> np.ndarray:
        if piece not in last:
            # One at a time: a tensor may be gigabytes.
            last.clear()
            last[piece] = rearrange(tensors.read(actual[piece.name]), piece.pattern, sizes)
        return last[piece]

    return _read
