"""Packing of whole conversations into windows."""

import bisect

import numpy as np

from research.data.census import Census
from research.data.chat import ChatEncoder
from research.data.documents import Documents
from research.data.places import first_path
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions


class PackedConversations:
    """Windows of one or more whole conversations. A conversation longer than a window is cut at its
    end, and left out if the assistant says nothing before the cut.

    `[i]` is a dict of int32 [length] arrays:

    tokens      ids, 0 for padding
    assistant   1 where the assistant speaks
    segments    1, 2, ... for the window's conversations, 0 for padding
    positions   counted from 0 in each conversation

    `seed` permutes the conversations once, which decides the order among equal lengths; None keeps
    their order. `ends` are where conversations are cut at the latest, int [conversations], by
    default a window's length after their starts. Of `documents` the census has the path of the
    first record that is cut or left out. ValueError for a store without a mask, and if no
    conversation is left.
    """

    def __init__(
        self,
        store: TokenStore,
        length: int,
        *,
        seed: int | None,
        ends: np.ndarray | None = None,
        documents: Documents | None = None,
    ):
        if store.mask is None:
            raise ValueError(
                "the tokens have no mask of what the assistant says; tokenise conversations"
            )
        self.length, self._store = length, store
        order = (
            np.arange(len(store))
            if seed is None
            else np.random.default_rng(seed).permutation(len(store))
        )
        starts = store.offsets[:-1]
        self._ends = np.minimum(store.offsets[1:], starts + length) if ends is None else ends
        said = np.concatenate([[0], np.cumsum(store.mask, dtype=np.int64)])
        # Tokens of the assistant between two places, by differences of a running sum. The first
        # token of a conversation is never a target, so it does not count.
        speaks = said[self._ends] > said[np.minimum(starts + 1, self._ends)]
        cut = speaks & (store.offsets[1:] > self._ends)
        self.stores = (store,)
        # Of a window the last token is a target only, so an example is one token shorter.
        self.census = Census(
            "conversations",
            len(store),
            length - 1,
            left_out=int(np.sum(~speaks)),
            cut=int(cut.sum()),
            first_left_out=first_path(documents, store, ~speaks),
            first_cut=first_path(documents, store, cut),
        )
        order = order[speaks[order]]
        if not len(order):
            raise ValueError(
                f"the assistant says nothing in the first {length} tokens of {len(store)} "
                f"conversation(s); "
                "set config.data.sequence_length"
            )
        # Only lengths decide which conversations share a window.
        self._windows = best_fit((self._ends - starts)[order].tolist(), length)
        self._order = order

    def __len__(self) -> int:
        return len(self._windows)

    def members(self, index: int) -> list[int]:
        """The conversations of window `index`, segment 1 first, as they are numbered in the
        store."""
        return [int(self._order[which]) for which in self._windows[index]]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        window = np.zeros((4, self.length), np.int32)
        tokens, assistant, segments, positions = window
        at = 0
        for segment, which in enumerate(self._windows[index], 1):
            conversation = self._order[which]
            begin, stop = self._store.offsets[conversation], self._ends[conversation]
            end = at + int(stop - begin)
            tokens[at:end], assistant[at:end] = (
                self._store.ids[begin:stop],
                self._store.mask[begin:stop],
            )
            segments[at:end] = segment
            positions[at:end] = np.arange(end - at)
            at = end
        return {
            "tokens": tokens,
            "assistant": assistant,
            "segments": segments,
            "positions": positions,
        }


def best_fit(sizes: list[int], room: int) -> list[list[int]]:
    """Distributes items over bins of equal `room`; each bin is a list of indices into `sizes`.

    Best fit decreasing (arXiv:2404.10830, section 3): the largest item first, each into the
    fullest bin that still has room for it. No size may exceed `room`.

    >>> best_fit([3, 5, 2], 5)
    [[1], [0, 2]]
    """
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # free space: the bins that have exactly this much left
    spaces: list[int] = []  # the keys of `by_space`, sorted, to be searched by bisection
    # O(n log room): there are at most `room` different free spaces, however many bins there are.
    # Sorting is stable, so the given order decides among equal sizes.
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect.bisect_left(spaces, sizes[index])
        if at == len(spaces):
            chosen, space = len(bins), room
            bins.append([])
        else:
            space = spaces[at]
            # Any bin of this space is as good; the last one is the cheapest to take.
            chosen = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[at]
        bins[chosen].append(index)
        left = space - sizes[index]
        if left:
            if left not in by_space:
                by_space[left] = []
                bisect.insort(spaces, left)
            by_space[left].append(chosen)
    return bins


def conversation_windows(documents: Documents, options: WindowOptions) -> PackedConversations:
    """Packed windows of conversations, rendered by the chat template of the tokenizer."""
    store = options.conversations(documents, ChatEncoder(options.tokenizer))
    return PackedConversations(store, options.length, seed=options.seed, documents=documents)
