"""What a grammar allows of a text, token by token, and how the text is brought to its end in time.

Letters: V vocabulary, W words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher

# What closes a JSON value, the first that is allowed; and, in this order, what an unfinished one
# may have instead.
CLOSERS = ('"', "}", "]", '"}', '"]', ":", ",", "0", "1", "a", "null", "true", "{", "[", "-")
_NEAR = 32  # tokens: an end so near is looked for at every token, see `Guide.take`


class Guide:
    """The state of a grammar behind a text's last token.

    left       everywhere: how many tokens the text may still have
    finished   nothing but an end may follow
    ends       tokens that end a text where the grammar lets it end

    A text that could still be brought to an end stays such: a token behind which the grammar would
    need more tokens than are left is not taken, and the way to the end that was known before it is
    gone instead. So a text ends within its limit, if its grammar has an end that is found at all:
    the search takes one token after the other (`_way_out`) and does not go back.
    """

    def __init__(self, matcher: LLMatcher, ends: Collection[int], rank_V: np.ndarray):
        self._matcher, self.ends, self._rank_V = matcher, frozenset(ends), rank_V
        self.finished = False
        self._way: list[int] | None = None  # to the end, where it was looked for
        self._forced = False  # to take that way
        # Tokens to the end when it was last looked for, and tokens that were taken since.
        self._length, self._since = 0, 0

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return self._matcher.is_accepting()

    def forced(self, left: int) -> bool:
        """Whether the way to the end that is known must be taken, `left` tokens being left."""
        return bool(self._way) and (self._forced or len(self._way or ()) == left)

    def mask(self, left: int, ahead: Sequence[int] = ()) -> np.ndarray:
        """The tokens that may follow, behind some that are guessed to follow first: a bit for each,
        uint32 [W], the least significant one first. Where the guess breaks the grammar all may."""
        taken = self._matcher.try_consume_tokens(list(ahead)) if ahead else 0
        if taken == len(ahead):
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        else:
            bits = np.full(-(-len(self._rank_V) // 32), 2**32 - 1, np.uint32)
        if taken:
            self._matcher.rollback(taken)
        if self._way and not ahead and self.forced(left):
            bits = np.zeros_like(bits)
            bits[self._way[0] // 32] = np.uint32(1 << self._way[0] % 32)
        return bits

    def take(self, token_id: int, left: int) -> bool:
        """Takes the next token, behind which `left` may follow. False for one that is not taken,
        because the text could not end in time behind it: it is `finished` or must be drawn again.
        """
        if token_id in self.ends:
            self.finished = True
            return True
        if self._way is None and not self._since:
            self._look(left + 1)
        if not self._matcher.consume_token(token_id):
            self.finished = True  # a grammar that has become too complex
            return False
        way, self._since = self._way, self._since + 1
        if way and way[0] == token_id:
            self._way = way[1:]
        elif left > 2 * (self._length + self._since) + _NEAR:
            self._way = None  # far from its limit
        else:
            self._look(left)
            if self._way is None and way is not None:
                self._matcher.rollback(1)
                self._way, self._forced, self.finished = way, True, not way
                return False
        self._forced = False
        self.finished = self._matcher.is_stopped()
        return True

    def _look(self, left: int) -> None:
        """Looks for a way to the end of at most `left` tokens."""
        self._way = _way_out(self._matcher, self._rank_V, left, self.ends)
        self._length, self._since = len(self._way or ()), 0


def ranks(lengths: Sequence[int], first: Sequence[int]) -> np.ndarray:
    """int32 [V]: the order in which tokens are tried on the way to an end; those of `first` first,
    then the shorter ones. `lengths` are in bytes."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    order = np.concatenate([np.asarray(first, int), order[~np.isin(order, first)]])
    rank_V = np.empty(len(lengths), np.int32)
    rank_V[order] = np.arange(len(order), dtype=np.int32)
    return rank_V


def _way_out(
    matcher: LLMatcher, rank_V: np.ndarray, most: int, ends: Collection[int]
) -> list[int] | None:
    """Tokens after which the text may end, at most so many; None where none are found. Not always
    the fewest."""
    for varied in (False, True):
        state, way = matcher.deep_copy(), list[int]()
        uses_V = np.zeros(len(rank_V), np.int32)
        while len(way) <= most:
            if state.is_accepting():
                return way
            more = state.compute_ff_tokens()  # where the grammar leaves no choice
            if not more:
                bits = np.frombuffer(state.compute_bitmask(), np.uint8)
                allowed_V = np.unpackbits(bits, bitorder="little")[: len(rank_V)].astype(bool)
                allowed_V[list(ends)] = False
                allowed = np.flatnonzero(allowed_V)
                if not len(allowed):
                    break
                # The second time the one that was taken least, which leaves a loop.
                cost = rank_V[allowed] + (uses_V[allowed] * len(rank_V) if varied else 0)
                more = [int(allowed[np.argmin(cost)])]
            if not state.consume_tokens(more):
                break
            uses_V[more] += 1
            way += more
    return None
