"""Packing of pairs of answers, chosen and rejected, into windows."""

import numpy as np

from research.data.census import Census
from research.data.chat_windows import best_fit
from research.data.documents import Documents
from research.data.plain_answers import answer_encoder
from research.data.preferences import SIDES
from research.data.tokens import TokenStore, tokenize_conversations
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

    `seed` permutes the pairs once, which decides the order among equal lengths; None keeps their
    order. ValueError if the stores hold different numbers of texts, and if no pair is left.
    """

    def __init__(
        self,
        stores: dict[str, TokenStore],
        length: int,
        *,
        seed: int | None,
        prompt_tokens: int = 0,
    ):
        self.stores = tuple(stores[side] for side in SIDES)
        total = len(self.stores[0])
        if len(self.stores[1]) != total:
            raise ValueError(f"{total} chosen but {len(self.stores[1])} rejected answers")
        self.length = length
        starts, stops = ([store.offsets[at:][:total] for store in self.stores] for at in (0, 1))
        bounds = [
            shorten_prompts(store, start, stop, prompt_tokens)
            for store, start, stop in zip(self.stores, starts, stops)
        ]
        shortened = int(sum(bounds[0] > starts[0]))
        starts = bounds
        sizes = [stop - start for start, stop in zip(starts, stops)]
        long = sizes[0] + sizes[1] > length
        # Halves, not what is left: which answer is cut must not depend on which one is preferred.
        kept = [np.where(long, np.minimum(size, length // 2), size) for size in sizes]
        self._starts, self._stops = starts, [a + b for a, b in zip(starts, kept)]
        speaks = [
            _said(store, start + 1, stop) for store, start, stop in zip(self.stores, starts, stops)
        ]
        within = [
            _said(store, start + 1, stop)
            for store, start, stop in zip(self.stores, starts, self._stops)
        ]
        answered = (within[0] > 0) & (within[1] > 0)
        cut = answered & ((within[0] < speaks[0]) | (within[1] < speaks[1]))
        equal = answered & np.array([self._equal(pair) for pair in range(total)], bool)
        fits = answered & ~equal
        self.census = Census(
            "pairs",
            total,
            length - 1,
            left_out=int((~fits).sum()),
            cut=int((cut & fits).sum()),
            shortened=shortened,
        )
        order = np.arange(total) if seed is None else np.random.default_rng(seed).permutation(total)
        self._order = order[fits[order]]
        if not len(self._order):
            raise ValueError(
                f"of {total} pair(s) none has two different answers in {length // 2} tokens a "
                "side; set config.data.sequence_length"
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
        return dict(zip(names, (tokens, assistant, segments, positions)))

    def _equal(self, pair: int) -> bool:
        """True if both sides of a pair are the same tokens within the window."""
        sides = (
            store.ids[starts[pair] : stops[pair]]
            for store, starts, stops in zip(self.stores, self._starts, self._stops)
        )
        return np.array_equal(*sides)


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
    stores = {
        side: tokenize_conversations(
            documents,
            encoder,
            options.cache,
            field=side,
            max_bad_records=options.max_bad_records,
            progress=options.progress,
        )
        for side in SIDES
    }
    return PackedPreferences(
        stores, options.length, seed=options.seed, prompt_tokens=options.prompt_tokens
    )
