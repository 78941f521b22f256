"""Long texts in pieces that a model can read, cut at the ends of paragraphs, lines, sentences or
words, whichever come first that are short enough."""

import re
from collections.abc import Callable
from itertools import accumulate

# The ends of a paragraph, a line, a sentence and a word, which stay with what is before them.
_ENDS = (r"\n\s*\n", r"\n", r"(?<=[.!?…。！？])[\"'”’)\]]*\s+", r"\s+")


def pieces(text: str, room: int, count: Callable[[str], int]) -> list[str]:
    """Pieces of at most `room` tokens by `count`, which joined are the text; as few as fit without
    cutting what fits whole.

    >>> pieces("One two. Three four.", 2, lambda text: len(text.split()))
    ['One two. ', 'Three four.']
    """
    return _cut(text, room, count, 0)


def _cut(text: str, room: int, count: Callable[[str], int], level: int) -> list[str]:
    if count(text) <= room:
        return [text]
    if level == len(_ENDS):
        # A word of nobody's language: halves of it, as long as they are too long.
        half = len(text) // 2
        return (
            [text]
            if not half
            else [
                *_cut(text[:half], room, count, level),
                *_cut(text[half:], room, count, level),
            ]
        )
    places = [0, *(match.end() for match in re.finditer(_ENDS[level], text)), len(text)]
    parts = [text[start:stop] for start, stop in zip(places, places[1:]) if start < stop]
    if len(parts) == 1:
        return _cut(text, room, count, level + 1)
    sizes = [count(part) for part in parts]
    found: list[str] = []
    first = 0
    while first < len(parts):
        if sizes[first] > room:
            found += _cut(parts[first], room, count, level + 1)
            first += 1
            continue
        # Tokens of parts add up to those of the whole or more, so the sum is on the safe side.
        sums = accumulate(sizes[first:])
        last = first + max(1, sum(1 for total in sums if total <= room))
        found.append("".join(parts[first:last]))
        first = last
    return found
