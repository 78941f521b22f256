"""Windows that hold one document each, as `data.packing=False` asks for."""

import numpy as np

from research.data.census import Census
from research.data.tokens import TokenStore


class SeparateWindows:
    """Windows cut from [bos] document [eos], for each document by itself; consecutive windows of
    a document share `overlap` tokens, and the rest of its last window is padding.

    `[i]` is a dict of int32 [length] arrays as those of `research.data.packing.PackedWindows`:
    tokens, segments (1 for the document, 0 for padding), and positions from the window's start. The
    arguments are as there too, and the same tokens are targets, once each.
    """

    def __init__(
        self,
        store: TokenStore,
        length: int,
        *,
        seed: int | None,
        bos_id: int | None,
        eos_id: int | None,
        overlap: int = 1,
        bounds: tuple[np.ndarray, np.ndarray],
    ):
        if not 0 <= overlap < length:
            raise ValueError(
                f"length={length} must be more than overlap={overlap}; set "
                f"config.data.sequence_length"
            )
        starts, stops = bounds
        if not np.sum(stops - starts):
            raise ValueError("no tokens to train on; give more text")
        self.stores, self.census = (store,), Census("texts", len(store), length)
        self.length, self._stride, self._ids = length, length - overlap, store.ids
        self._bos = [] if bos_id is None else [bos_id]
        self._eos = [] if eos_id is None else [eos_id]
        order = np.arange(len(starts))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(starts))
        order = order[stops[order] > starts[order]]
        self._starts, self._stops = starts[order], stops[order]
        lengths = self._stops - self._starts + len(self._bos) + len(self._eos)
        # A window must hold a token beyond the overlap, whose tokens have been targets already.
        counts = np.maximum(1, -(-(lengths - overlap) // self._stride))
        self._firsts = np.concatenate([[0], np.cumsum(counts)])  # a document's first window

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        # Indexing a range raises IndexError and counts negative indices from the end.
        index = range(len(self))[index]
        document = int(self._firsts.searchsorted(index, "right")) - 1
        start, stop = self._starts[document], self._stops[document]
        # Where the window begins, as an index in `ids`; that of bos is before the document's first.
        first = start - len(self._bos) + (index - self._firsts[document]) * self._stride
        ids = [
            *(self._bos if first < start else []),
            *self._ids[max(first, start) : min(first + self.length, stop)],
            *(self._eos if first + self.length > stop else []),
        ]
        tokens, segments, positions = np.zeros((3, self.length), np.int32)
        tokens[: len(ids)], segments[: len(ids)] = ids, 1
        positions[: len(ids)] = np.arange(len(ids))
        return {"tokens": tokens, "segments": segments, "positions": positions}
