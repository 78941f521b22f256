"""Packing: documents are concatenated and cut into windows of one length, with random access."""

from collections.abc import Sequence

import numpy as np

from research.data.census import Census, unmarked_bounds
from research.data.documents import Documents
from research.data.separate import SeparateWindows
from research.data.tokenizers import Tokenizer
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions


class PackedWindows:
    """Windows cut from the stream [bos] document [eos] [bos] document [eos] ...; consecutive
    windows share `overlap` tokens.

    `[i]` is a dict of int32 [length] arrays:

    tokens      ids, 0 after the stream's end
    segments    1, 2, ... for the window's documents, 0 for padding
    positions   counted from the start of the document or of the window, whichever is later, so that
                no window depends on another

    With overlap 1 every token of the stream but the first is the target of its left neighbour in
    exactly one window, as a causal model needs; with overlap 0 each token is in exactly one window.
    `seed` permutes the documents once; None keeps their order. `bounds` are the (first, end)
    indices in `store.ids` of the documents to pack, by default all of them whole. ValueError for a
    store without tokens, and unless 0 <= overlap < length.
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
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        if not 0 <= overlap < length:
            raise ValueError(
                f"length={length} must be more than overlap={overlap}; set "
                f"config.data.sequence_length"
            )
        starts, stops = bounds or (store.offsets[:-1], store.offsets[1:])
        if not np.sum(stops - starts):
            raise ValueError("no tokens to pack; give more text")
        self.stores, self.census = (store,), Census("texts", len(store), length)
        self.length, self._stride = length, length - overlap
        self._bos, self._eos, self._ids = bos_id, eos_id, store.ids
        extra = (bos_id is not None) + (eos_id is not None)
        order = (
            np.arange(len(starts))
            if seed is None
            else np.random.default_rng(seed).permutation(len(starts))
        )
        lengths = (stops - starts)[order] + extra
        # The stream is never written down: these arrays say where each document would start in
        # it, and a window is gathered from the token store when it is asked for.
        order, lengths = order[lengths > 0], lengths[lengths > 0]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        # For a document's tokens, position in the stream + shift = index in `ids`.
        self._shifts = starts[order] - self._starts[:-1] - (bos_id is not None)
        self.n_tokens = int(self._starts[-1])
        # The last window may be short. It must hold a token beyond the overlap, since the tokens
        # of the overlap have been targets already.
        self._count = max(1, -(-(self.n_tokens - overlap) // self._stride))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        # Indexing a range raises IndexError and counts negative indices from the end.
        first = range(self._count)[index] * self._stride
        size = min(self.length, self.n_tokens - first)
        begin = int(self._starts.searchsorted(first, "right")) - 1
        end = int(self._starts.searchsorted(first + size, "left"))
        # Where each of the window's documents starts, and the last one ends. The window may begin
        # and end in the middle of a document, which then has no bos or no eos here.
        edges = self._starts[begin : end + 1] - first
        starts_whole, ends_whole = edges[0] == 0, edges[-1] == size
        edges[0], edges[-1] = 0, size
        counts = edges[1:] - edges[:-1]
        window = np.zeros((3, self.length), np.int32)
        tokens, segments, positions = window
        here = np.arange(size)
        at = (self._shifts[begin:end] + first).repeat(counts)
        at += here
        # The positions of bos and eos read a neighbouring id here and are overwritten below.
        tokens[:size] = self._ids.take(at, mode="clip")
        if self._bos is not None:
            tokens[edges[0 if starts_whole else 1 : -1]] = self._bos
        if self._eos is not None:
            tokens[edges[1 : None if ends_whole else -1] - 1] = self._eos
        segments[:size] = np.arange(1, len(counts) + 1).repeat(counts)
        positions[:size] = here - edges[:-1].repeat(counts)
        return {"tokens": tokens, "segments": segments, "positions": positions}


class Chained:
    """Several sequences of windows one after the other, as one sequence. Evaluation reads the
    held-out parts of a mixture in this way."""

    def __init__(self, windows: Sequence[Sequence[dict[str, np.ndarray]]]):
        self._windows = windows
        self._ends = np.cumsum([len(part) for part in windows])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._windows[which][index - (int(self._ends[which - 1]) if which else 0)]


def text_windows(documents: Documents, options: WindowOptions) -> PackedWindows | SeparateWindows:
    """Windows of the field "text" of the documents, packed by `options.packing`."""
    # The first token of a text is predicted from the token before it. A tokenizer without bos lends
    # its eos for that: otherwise the first token would not count, and bits per byte would be too
    # low.
    eos, bos = options.tokenizer.eos_id, options.tokenizer.bos_id
    store = options.tokens(documents, "text")
    starts, stops = packed_bounds(documents, store, options.tokenizer)
    windows = (PackedWindows if options.packing else SeparateWindows)(
        store,
        options.length,
        seed=options.seed,
        bos_id=eos if bos is None else bos,
        eos_id=eos,
        overlap=options.overlap,
        bounds=(starts, stops),
    )
    empty = len(store) - len(starts)
    windows.census = Census("texts", len(store), options.length, empty=empty)
    return windows


def packed_bounds(
    documents: Documents, store: TokenStore, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """(first, end) index in `store.ids` of each text to pack: without marks of its own, and without
    empty texts, which would teach that a text ends where it begins."""
    # Documents under rules 1 keep both: their runs began so, and the empty files of the standard
    # library are in every figure that was measured on it.
    if getattr(documents, "rules", 1) < 2:
        return store.offsets[:-1], store.offsets[1:]
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    starts, stops = unmarked_bounds(store, eos if bos is None else bos, eos)
    filled = stops > starts
    return starts[filled], stops[filled]
