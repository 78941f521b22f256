"""Long texts in stretches that fit a window, and the characters that tokens stand for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from research.data.census import Census
from research.data.documents import digest
from research.data.tokenizers import Tokenizer


class Stretch(NamedTuple):
    """Tokens `start` to `stop` of a text, which a window holds. Of those it shares with its
    neighbours, tokens `first` to `last` are its own: every token is some stretch's own once, with
    as much of the text on both sides as there is."""

    start: int
    stop: int
    first: int
    last: int


def stretches(count: int, room: int, overlap: int) -> list[Stretch]:
    """The stretches of a text of `count` tokens of which `room` fit, neighbours sharing `overlap`;
    one where all fit. ValueError where the shared tokens leave no room for new ones.

    >>> [tuple(one) for one in stretches(10, 6, 2)]
    [(0, 6, 0, 5), (4, 10, 5, 10)]
    """
    if count <= room:
        return [Stretch(0, count, 0, count)]
    if not 0 <= overlap < room:
        raise ValueError(
            f"objective.overlap={overlap} leaves no room for new tokens where {room} of a text "
            "fit; set it lower, or config.data.sequence_length higher"
        )
    starts = list(range(0, count - overlap, room - overlap))
    # The last one reaches back instead of ending short: more to read costs nothing in a window.
    starts[-1] = count - room
    # Of what two share each takes the half that is farther from its own end.
    borders = [0, *((here + before + room) // 2 for before, here in zip(starts, starts[1:])), count]
    return [Stretch(at, at + room, *own) for at, own in zip(starts, zip(borders, borders[1:]))]


class Places:
    """A tokenizer whose ids are where a text's tokens stand: first and last character + 1 of each,
    without spaces around it; so that places are stored and aligned like the tokens."""

    vocab_size = 2**32 - 1

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.fingerprint = digest("places", tokenizer.fingerprint)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Two numbers for each token of each text."""
        aligned = self._tokenizer.align_batch(texts)
        return [trimmed(text, places) for text, (_, places) in zip(texts, aligned)]


def trimmed(text: str, places: Iterable[tuple[int, int]]) -> list[int]:
    """First and last character + 1 of each token in turn, without the spaces that it begins or ends
    with; a token of spaces alone keeps them."""
    numbers: list[int] = []
    for start, stop in places:
        piece = text[start:stop]
        if piece.strip():
            start += len(piece) - len(piece.lstrip())
            stop -= len(piece) - len(piece.rstrip())
        numbers += [start, stop]
    return numbers


def token_span(starts: np.ndarray, stops: np.ndarray, first: int, last: int) -> tuple[int, int]:
    """(index of the first token, of the last) that have characters `first` to `last` - 1; the first
    is behind the last where no token has any."""
    return int(np.searchsorted(stops, first, "right")), int(np.searchsorted(starts, last)) - 1


@dataclass(frozen=True)
class SplitCensus(Census):
    """How texts fit into windows where longer ones are split: `split` of them make `windows`, and
    neighbours share `overlap` tokens."""

    split: int = 0
    windows: int = 0
    overlap: int = 0
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The lines of `Census`, one on what is split, and the further `notes`."""
        lines = [*super().lines(), *self.notes]
        if self.split:
            lines.append(
                f"{self.split} of {self.total} {self.kind} are longer than {self.length} tokens "
                f"and make {self.windows} windows, of which neighbours share {self.overlap} tokens"
            )
        return lines


def all_stretches(
    counts: Sequence[int], rooms: Sequence[int], overlap: int
) -> list[tuple[int, Stretch]]:
    """(number of the text, stretch) of each window of texts of so many tokens, in order."""
    return [
        (number, one)
        for number, (count, room) in enumerate(zip(counts, rooms))
        for one in stretches(count, room, overlap)
    ]
