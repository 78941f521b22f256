"""Texts with a gap: what is before it and behind it is read, and what fills it is written
(arXiv:2207.14255)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from research.data.documents import Documents, UnreadableRecord, digest
from research.data.tokenizers import Tokenizer
from research.data.tokenizers.special import GAPS

# The tokens in front of what is before the gap, of what is behind it, and of what fills it, in the
# order in which models read them: StarCoder and ours, SantaCoder, Qwen and CodeGemma, Code Llama,
# DeepSeek.
SENTINELS = (
    GAPS,
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
# Share of the texts that get a gap: up to 0.9 costs nothing from left to right (section 4.2).
RATE = 0.9
# A window holds a text with its gap or is of no use, so files are cut into stretches of whole
# lines: some 300 tokens of code.
CHARACTERS = 800
_FORMAT = "1"  # part of the fingerprint: raise it when other texts are made


@dataclass(frozen=True)
class Gap:
    """A text in three: `before`, what fills the gap, and `behind`."""

    before: str
    middle: str
    behind: str


def gap_at_line(text: str, rng: np.random.Generator) -> Gap | None:
    """A gap in place of one line, without the spaces around what is on it; None for a text of
    blank lines."""
    lines = [match for match in re.finditer(r"\S.*", text) if match[0].strip()]
    if not lines:
        return None
    chosen = lines[int(rng.integers(len(lines)))]
    start, stop = chosen.start(), chosen.start() + len(chosen[0].rstrip())
    return Gap(text[:start], text[start:stop], text[stop:])


def gap_anywhere(text: str, rng: np.random.Generator) -> Gap:
    """A gap between two places of a text, each as likely as any other (section 3)."""
    start, stop = sorted(map(int, rng.integers(0, len(text) + 1, 2)))
    return Gap(text[:start], text[start:stop], text[stop:])


def spelt(gap: Gap, suffix_first: bool) -> str:
    """A text with a gap as a model learns it, in the order prefix, suffix, middle, or with the
    suffix first, where the middle goes on from the prefix (section 3, "SPM variant 2")."""
    one, two, three = SENTINELS[0]
    if suffix_first:
        return f"{one}{two}{gap.behind}{three}{gap.before}{gap.middle}"
    return f"{one}{gap.before}{two}{gap.behind}{three}{gap.middle}"


def sentinels_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the first row of `SENTINELS` whose strings are a token each, () for none."""
    for row in SENTINELS:
        ids = [tokenizer.encode(name) for name in row]
        if all(len(one) == 1 for one in ids) and len({one[0] for one in ids}) == len(row):
            if all(tokenizer.decode(one) == name for one, name in zip(ids, row)):
                return tuple(one[0] for one in ids)
    return ()


def gap_ids(
    tokenizer: Tokenizer,
    sentinels: Sequence[int],
    before: str,
    behind: str,
    room: int,
    suffix_first: bool = False,
) -> tuple[list[int], int]:
    """(ids that the model reads before it fills a gap, tokens that were cut): of what is before the
    gap the end, and as much behind it as there is room for in a third."""
    ids, rest = tokenizer.encode(before), tokenizer.encode(behind)
    tail = rest[: max(room // 3, room - len(ids))]
    head = ids[-(room - len(tail)) :]
    cut = len(ids) + len(rest) - len(head) - len(tail)
    one, two, three = sentinels
    if suffix_first:
        return [one, two, *tail, three, *head], cut
    return [one, *head, two, *tail, three], cut


class Infilled:
    """Documents in stretches of up to `CHARACTERS`, of which `RATE` get a gap: half of the gaps a
    line, half anywhere, and half of them with the suffix first. The same text always gets the same
    gap. The tokenizer needs `SENTINELS[0]`, which "bpe:VOCAB+fim" has."""

    fields = ("text",)

    def __init__(self, documents: Documents):
        self._documents, self.rules = documents, 2
        self.fingerprint = digest("infilled", _FORMAT, documents.fingerprint)
        # Where each stretch stands: reading all documents once is cheap beside tokenising them.
        self._places = [
            (index, start, stop)
            for index in range(len(documents))
            for start, stop in _stretches(documents, index)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, str]:
        which, start, stop = self._places[index]
        document = self._documents[which]
        text, path = document["text"][start:stop], f"{document['path']}:{start}"
        seed = int(digest(path, text)[:16], 16)
        return {"text": with_gap(text, np.random.default_rng(seed)), "path": path}

    def identities(self) -> Iterator[str]:
        """The paths, in order."""
        return (self[index]["path"] for index in range(len(self)))


def with_gap(text: str, rng: np.random.Generator) -> str:
    """The text as a model learns it, see `Infilled`."""
    if rng.random() >= RATE:
        return text
    gap = gap_at_line(text, rng) if rng.random() < 0.5 else gap_anywhere(text, rng)
    return text if gap is None else spelt(gap, bool(rng.random() < 0.5))


def _stretches(documents: Documents, index: int) -> list[tuple[int, int]]:
    try:
        return stretches(documents[index]["text"])
    except UnreadableRecord:  # one place, at which it is counted as such
        return [(0, 0)]


def refuse_without_gaps(source: str, tokenizer: Tokenizer) -> None:
    """ValueError for texts with gaps and a tokenizer that has no tokens for them."""
    if "infill:" in source and any(len(tokenizer.encode(name)) != 1 for name in GAPS):
        raise ValueError(
            f"data {source!r} have gaps, and the tokenizer has no tokens {', '.join(GAPS)}; set "
            "config.data.tokenizer to bpe:VOCAB+fim"
        )


def stretches(text: str, characters: int = CHARACTERS) -> list[tuple[int, int]]:
    """(start, stop) of stretches of whole lines of at most so many characters, but for a longer
    line. Blank ones are left out.

    >>> stretches("one\\ntwo\\nthree\\n", 9)
    [(0, 8), (8, 14)]
    """
    found, start, at = [], 0, 0
    for line in text.splitlines(keepends=True):
        if at > start and at + len(line) - start > characters:
            found.append((start, at))
            start = at
        at += len(line)
    found.append((start, at))
    return [(a, b) for a, b in found if text[a:b].strip()]
