"""The spans of a text that decoding writes with one rotation of its positions."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from research.models.config import ModelConfig


class Row(Protocol):
    """A text to continue: its prompt, the most new tokens, and why it has ended, "" before."""

    ids: list[int]
    limit: int
    finish: str


AnyRow = TypeVar("AnyRow", bound=Row)


def spans(c: ModelConfig, rows: Sequence[AnyRow]) -> Iterator[tuple[list[AnyRow], list[int]]]:
    """(rows, the most new tokens of each so far) to write one after the other: all at once, but for
    the two rotations of LongRoPE.

    A text turns to the second rotation with its first token beyond the original length, as in
    transformers. All that a cache holds of it is then void, so the text is read again.
    """
    scaling = c.rope_scaling
    if scaling.kind != "longrope":
        yield list(rows), [row.limit for row in rows]
        return
    # The first rotation reads `original_length` tokens at most, and predicts one more.
    most = scaling.original_length + 1
    short = [row for row in rows if len(row.ids) < most]
    yield short, [min(row.limit, most - len(row.ids)) for row in short]
    # Asked for when those are written: what has ended by then is left out.
    long = [row for row in rows if not row.finish]
    yield long, [row.limit for row in long]
