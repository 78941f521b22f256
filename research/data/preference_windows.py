"""Packing of pairs of answers, chosen and rejected, into windows."""

import numpy as np

from research.data.census import Census
from research.data.chat_windows import best_fit
from research.data.documents import Documents, digest
from research.data.places import first_of, first_path
from research.data.plain_answers import answer_encoder
from research.data.preferences import MARGIN, SIDES
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions

# A window has at most one pair for so many tokens, so that the number of pairs has a bound that
# depends on the window's length alone. Shorter pairs leave room.
TOKENS_A_PAIR = 32


def most_pairs(length: int) -> int:
    """The most pairs of a window of `length` tokens."""
    return max(1, length // TOKENS_A_PAIR)


class PackedPreferences:
    """Windows of one or more whole pairs. Pair p is segment 2 p + 1, the prompt with the chosen
    answer, and segment 2 p + 2, the prompt with the rejected one.

    `[i]` is a dict of int32 [length] arrays: "tokens", "assistant" (1 in the answers), "segments"
    (0 for padding) and "positions", counted from 0 in each segment. Of a prompt longer than
    `prompt_tokens` (0 for no limit) the beginning is left out. Of a pair longer than a window then
    each side is cut at its half; one of which a side has no answer before the cut is left out, and
    so is one whose two sides are equal as tokens.

    With `margins`, float32 [pairs], there are "margins", float32 [length], that of the pair that a
    token belongs to. `seed` permutes the pairs once, which decides the order among equal lengths;
    None keeps their order. Of `documents` the census has the path of the first record that is cut
    or left out. ValueError if the stores hold different numbers of texts, and if no pair
    is left.
    """

    def __init__(
        self,
        stores: dict[str, TokenStore],
        length: int,
        *,
        seed: int | None,
        prompt_tokens: int = 0,
        margins: np.ndarray | None = None,
        documents: Documents | None = None,
    ):
        self.margins = margins
        self.stores = tuple(stores[side] for side in SIDES)
        total = len(self.stores[0])
        if len(self.stores[1]) != total:
            raise ValueError(f"{total} chosen but {len(self.stores[1])} rejected answers")
        self.length = length
        wholes, stops = ([store.offsets[at:][:total] for store in self.stores] for at in (0, 1))
        starts = [shorten_prompts(*one, prompt_tokens) for one in zip(self.stores, wholes, stops)]
        sizes = [stop - start for start, stop in zip(starts, stops)]
        long = sizes[0] + sizes[1] > length
        # Halves, not what is left: which answer is cut must not depend on which one is preferred.
        kept = [np.where(long, np.minimum(size, length // 2), size) for size in sizes]
        self._starts, self._stops = starts, [a + b for a, b in zip(starts, kept)]
        speaks, within = (
            [_said(store, at + 1, end) for store, at, end in zip(self.stores, starts, ends)]
            for ends in (stops, self._stops)
        )
        answered = (within[0] > 0) & (within[1] > 0)
        cut = answered & ((within[0] < speaks[0]) | (within[1] < speaks[1]))
        fits = answered & ~np.array([self._equal(pair) for pair in range(total)], bool)
        self.census = Census(
            "pairs",
            total,
            length - 1,
            left_out=int((~fits).sum()),
            cut=int((cut & fits).sum()),
            shortened=int(np.sum(starts[0] > wholes[0])),
            first_left_out=first_path(documents, self.stores[0], ~fits),
            first_cut=first_path(documents, self.stores[0], cut & fits),
        )
        order = np.arange(total) if seed is None else np.random.default_rng(seed).permutation(total)
        self._order = order[fits[order]]
        if not len(self._order):
            raise ValueError(
                f"of {total} pair(s) none has two different answers in {length // 2} tokens a side"
                f"{first_of(self.census.first_left_out)}; set config.data.sequence_length"
            )
        packed = best_fit((kept[0] + kept[1])[self._order].tolist(), length)
        most = most_pairs(length)
        self._windows = [bin[at : at + most] for bin in packed for at in range(0, len(bin), most)]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        window = np.zeros((4, self.length), np.int32)
        tokens, assistant, segments, positions = window
        at, segment = 0, 0
        for which in self._windows[index]:
            pair = self._order[which]
            for store, starts, stops in zip(self.stores, self._starts, self._stops):
                begin, stop = int(starts[pair]), int(stops[pair])
                end, segment = at + stop - begin, segment + 1
                tokens[at:end] = store.ids[begin:stop]
                assistant[at:end] = store.mask[begin:stop]
                segments[at:end] = segment
                positions[at:end] = np.arange(end - at)
                at = end
        names = ("tokens", "assistant", "segments", "positions")
        made = dict(zip(names, (tokens, assistant, segments, positions)))
        if self.margins is None:
            return made
        pairs = self._order[self._windows[index]]
        # Padding, whose number is 0, takes the last one.
        margins = np.append(self.margins[pairs], np.float32(0))
        return {**made, "margins": margins[(segments - 1) // 2]}

    def _equal(self, pair: int) -> bool:
        """True if both sides of a pair are the same tokens within the window."""
        sides = (
            store.ids[starts[pair] : stops[pair]]
            for store, starts, stops in zip(self.stores, self._starts, self._stops)
        )
        return np.array_equal(*sides)


class Numbers:
    """A tokenizer whose texts are numbers and whose ids are their bits in float32, so that numbers
    are stored and aligned like the texts that they belong to."""

    vocab_size, fingerprint = 2**32, digest("numbers", "2")

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """One id for each text."""
        bits = np.array(texts, np.float64).astype(np.float32).view(np.uint32)
        return [[int(one)] for one in bits]


def shorten_prompts(
    store: TokenStore, starts: np.ndarray, stops: np.ndarray, most: int
) -> np.ndarray:
    """The first index in `store.ids` of each text [starts, stops) whose prompt, which is what
    stands before the assistant's first token, keeps its last `most` tokens; 0 for no limit."""
    if store.mask is None:
        raise ValueError("the tokens have no mask of the answers; tokenise conversations")
    if not most:
        return starts
    said = np.append(np.flatnonzero(store.mask), len(store.mask))
    answers = np.minimum(said[np.searchsorted(said, starts)], stops)
    # A text without an answer is left out later.
    return np.where(answers < stops, np.maximum(starts, answers - most), starts)


def _said(store: TokenStore, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Tokens of the assistant in [starts, stops). The first token of a text is never a target, so
    callers leave it out."""
    if store.mask is None:
        raise ValueError("the tokens have no mask of the answers; tokenise conversations")
    said = np.concatenate([[0], np.cumsum(store.mask, dtype=np.int64)])
    return said[stops] - said[np.minimum(starts, stops)]


def preference_windows(documents: Documents, options: WindowOptions) -> PackedPreferences:
    """Packed windows of pairs, rendered by the chat template of the tokenizer if it has one."""
    encoder = answer_encoder(options.tokenizer)
    stores = {side: options.conversations(documents, encoder, side) for side in SIDES}
    margins = options.tokens(documents, MARGIN, Numbers())
    if len(margins) != len(stores[SIDES[0]]):
        raise ValueError(
            f"{len(stores[SIDES[0]])} pairs but {len(margins)} margins: the template rejects some "
            "records; leave them out of the data"
        )
    numbers = margins.ids.astype(np.uint32).view(np.float32)
    return PackedPreferences(
        stores,
        options.length,
        seed=options.seed,
        prompt_tokens=options.prompt_tokens,
        margins=numbers if numbers.any() else None,
        documents=documents,
    )
