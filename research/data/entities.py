"""Entities in tags of words: IOB1, IOB2, IOE and IOBES, read as conlleval does, which seqeval
follows (its lenient mode)."""

from collections.abc import Sequence

# A tag that ends an entity before it, or after it, whatever follows.
_OPENS, _CLOSES = frozenset("BSU"), frozenset("ESL")


def read_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(label, first word, last word) of each entity in the tags of a text. A tag is "O", or one of
    B, I, E, S (L and U of BILOU) with a label: "B-PER". One without a dash is a label by itself, as
    of parts of speech, whose neighbours of the same label are one entity.

    >>> read_entities(["B-PER", "I-PER", "O", "I-LOC"])
    [('PER', 0, 1), ('LOC', 3, 3)]
    """
    found: list[tuple[str, int, int]] = []
    before, first = ("O", ""), 0
    for place, tag in enumerate([*tags, "O"]):
        here = _parts(tag)
        if before[0] != "O" and _ends(before, here):
            found.append((before[1], first, place - 1))
        if here[0] != "O" and (before[0] == "O" or _ends(before, here)):
            first = place
        before = here
    return found


def _parts(tag: str) -> tuple[str, str]:
    """(kind of the tag, label): ("B", "PER") of "B-PER", and ("I", "NOUN") of "NOUN"."""
    kind, dash, label = tag.partition("-")
    if tag == "O":
        return "O", ""
    return (kind, label) if dash and kind in "BIESLU" and len(kind) == 1 else ("I", tag)


def _ends(before: tuple[str, str], here: tuple[str, str]) -> bool:
    """True if the entity of one tag does not go on with the next."""
    return here[0] == "O" or here[0] in _OPENS or before[0] in _CLOSES or before[1] != here[1]
