"""Packing: documents one after the other, cut into windows of one length, by random access."""

from collections.abc import Sequence

import numpy as np

from research.data.documents import Documents
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions


class PackedWindows:
    """Windows over the stream [bos] document [eos] [bos] document [eos] ...; neighbours share
    `overlap` tokens.

    `[i]` is int32 [length] each: "tokens"; "segments", 1, 2, ... for the window's documents in
    turn, 0 for the padding after the last window's tokens; "positions", from 0 at each document's
    or the window's start, whichever is later, so that no window depends on another. With overlap 1
    every token of the stream but the first is the right neighbour of another in exactly one window,
    the target of a causal model; with overlap 0 every token is in exactly one window.

    `seed` permutes the documents once; None keeps their order. ValueError for a store without
    tokens, or a length that leaves nothing to advance.
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
    ):
        if not 0 <= overlap < length:
            raise ValueError(
                f"length={length} must be more than overlap={overlap}; set "
                f"config.data.sequence_length"
            )
        if not len(store.ids):
            raise ValueError("no tokens to pack; give more text")
        self.length, self._stride = length, length - overlap
        self._bos, self._eos, self._ids = bos_id, eos_id, store.ids
        extra = (bos_id is not None) + (eos_id is not None)
        order = (
            np.arange(len(store))
            if seed is None
            else np.random.default_rng(seed).permutation(len(store))
        )
        lengths = np.diff(store.offsets)[order] + extra
        order, lengths = order[lengths > 0], lengths[lengths > 0]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        # Stream position + shift = index into ids, in the document that owns the position.
        self._shifts = store.offsets[order] - self._starts[:-1] - (bos_id is not None)
        self.n_tokens = int(self._starts[-1])
        self._count = max(1, -(-(self.n_tokens - overlap) // self._stride))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = (
            range(self._count)[index] * self._stride
        )  # IndexError out of range, negative ones count from the end
        size = min(self.length, self.n_tokens - first)
        begin = int(self._starts.searchsorted(first, "right")) - 1
        end = int(self._starts.searchsorted(first + size, "left"))
        edges = (
            self._starts[begin : end + 1] - first
        )  # where the window's documents start, and the last one's end
        whole_first, whole_last = edges[0] == 0, edges[-1] == size
        edges[0], edges[-1] = 0, size
        counts = edges[1:] - edges[:-1]
        window = np.zeros((3, self.length), np.int32)
        tokens, segments, positions = window
        here = np.arange(size)
        at = (self._shifts[begin:end] + first).repeat(counts)
        at += here
        tokens[:size] = self._ids.take(at, mode="clip")  # one off at bos and eos, which follow
        if self._bos is not None:
            tokens[edges[0 if whole_first else 1 : -1]] = self._bos
        if self._eos is not None:
            tokens[edges[1 : None if whole_last else -1] - 1] = self._eos
        segments[:size] = np.arange(1, len(counts) + 1).repeat(counts)
        positions[:size] = here - edges[:-1].repeat(counts)
        return {"tokens": tokens, "segments": segments, "positions": positions}


class Chained:
    """Several windows' sequences one after the other, for evaluating all held-out parts of a
    mixture at once."""

    def __init__(self, windows: Sequence[Sequence[dict[str, np.ndarray]]]):
        self._windows = windows
        self._ends = np.cumsum([len(part) for part in windows])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._windows[which][index - (int(self._ends[which - 1]) if which else 0)]


def text_windows(documents: Documents, options: WindowOptions) -> PackedWindows:
    """Packed windows of texts."""
    # Without a token that begins a text its first word could not be predicted, and bits per byte
    # would be too few.
    eos, bos = options.tokenizer.eos_id, options.tokenizer.bos_id
    return PackedWindows(
        options.tokens(documents, "text"),
        options.length,
        seed=options.seed,
        bos_id=eos if bos is None else bos,
        eos_id=eos,
        overlap=options.overlap,
    )
