"""Passages: documents in stretches that are short enough to be one vector each."""

from collections.abc import Callable
from dataclasses import dataclass

from research.data.pieces import pieces

# Tokens of a passage. MiniLM reads 256 and was trained on 128 (its model card), and a question is
# about a paragraph: a vector of a longer stretch is about everything and near nothing.
TOKENS = 160


@dataclass(frozen=True)
class Passage:
    """The characters `start` to `stop` of the document `source`, which are `text`."""

    source: str
    start: int
    stop: int
    text: str


def passages(
    source: str, text: str, count: Callable[[str], int], tokens: int = TOKENS
) -> list[Passage]:
    """A document in passages of at most `tokens` by `count`, cut where paragraphs, lines or
    sentences end. Blank stretches are none.

    >>> passages("a.txt", "One two. Three.", lambda text: len(text.split()), 2)[1]
    Passage(source='a.txt', start=9, stop=15, text='Three.')
    """
    found, at = [], 0
    for piece in pieces(text, tokens, count):
        inner = piece.strip()
        if inner:
            start = at + len(piece) - len(piece.lstrip())
            found.append(Passage(source, start, start + len(inner), inner))
        at += len(piece)
    return found
