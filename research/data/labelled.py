"""Windows of labelled texts, for classification."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from research.data.census import Census, unmarked_bounds
from research.data.documents import Documents, UnreadableRecord, digest
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions
from research.downloads.cache import remembered

_MOST_CLASSES = 1_000_000


def label_names(
    parts: Iterable[Documents],
    cache_dir: Path,
    field: str = "label",
    names_of: Callable[[str], Iterable[str]] | None = None,
) -> tuple[str, ...]:
    """The names of the classes in labelled documents; the number of a class is its index.
    `names_of` gives the names in a field that has several.

    Names are sorted alphabetically. If all labels are numbers, the classes are "0" to the largest
    one, so that class 3 is number 3 even if the data have no class 2. ValueError for a number of
    a million or more.
    """
    parts, _names = list(parts), names_of or (lambda name: (name,))
    # Named by content: every start of a run asks, and the answer takes a pass over all records.
    key = digest("labels", *(["names"] if names_of else []), *(part.fingerprint for part in parts))

    def _read_all() -> list[str]:
        names = set()
        for part in parts:
            for index in range(len(part)):
                try:
                    names.update(_names(part[index][field]))
                except UnreadableRecord:  # counted where the records are tokenised
                    continue
        if all(name.isascii() and name.isdecimal() for name in names):
            largest = max(map(int, names), default=-1)
            # A year or an id in the place of a class would make more classes than memory has room.
            if largest >= _MOST_CLASSES:
                raise ValueError(
                    f"label {largest} would make {largest + 1} classes; number them from 0, or "
                    f"name another field with ?text=FIELD&label=FIELD"
                )
            return [str(number) for number in range(largest + 1)]
        return sorted(names)

    names = tuple(remembered(cache_dir / "labels" / f"{key[:32]}.json", _read_all))
    for group in alike(names):
        logging.warning(
            "classes %s are %d and differ in case or spaces alone; if one is meant, write it alike",
            " and ".join(map(repr, group)),
            len(group),
        )
    return names


def named_labels(labels: tuple[str, ...], given: str) -> tuple[str, ...]:
    """The names of classes that the data number, `given` as "O,B-PER,I-PER"; without them `labels`.
    ValueError where the data have names, or more classes than there are names."""
    if not given:
        return labels
    names = tuple(name.strip() for name in given.split(","))
    numbered = all(label.isdecimal() for label in labels)
    if not numbered or len(labels) > len(names) or "" in names or len(set(names)) < len(names):
        shown = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
        raise ValueError(
            f"data.label_names={given!r} must name the classes 0, 1, ... of the data, each once; "
            f"the data have {len(labels)}: {shown}"
        )
    return names


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ in nothing but case and spaces."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.casefold().split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


class Labels:
    """A tokenizer whose texts are labels and whose ids are the numbers of their classes, so that
    labels are stored and aligned like the texts that they belong to."""

    def __init__(self, names: tuple[str, ...]):
        # "" ends the fingerprint so that no list of names has the digest of a single string.
        self.names, self.vocab_size, self.fingerprint = (
            names,
            len(names),
            digest("labels", *names, ""),
        )
        self._numbers = {name: number for number, name in enumerate(names)}

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """One id for each label. ValueError for a label that is no class of the training data."""
        # All at once, before any id is given: the message names the first in order.
        unknown = sorted({text for text in texts if text not in self._numbers})
        if unknown:
            raise ValueError(
                f"label {unknown[0]!r} is in the held-out data alone; give training data of every "
                f"class"
            )
        return [[self._numbers[text]] for text in texts]


class LabelledTexts:
    """Windows of one labelled text each: [bos] text [eos]. A longer text is cut in front of eos.

    `[i]` is a dict of int32 arrays: "tokens", "segments" (1, 0 for padding) and "positions"
    [length], and the number of the class, "label" [1]. ValueError if the stores hold different
    numbers of records, and for a `length` under 3.
    """

    def __init__(
        self,
        texts: TokenStore,
        labels: TokenStore,
        length: int,
        *,
        bos_id: int | None,
        eos_id: int | None,
    ):
        if len(texts) != len(labels):
            raise ValueError(
                f"{len(texts)} texts but {len(labels)} labels; tokenise fields of the same "
                f"documents"
            )
        if length < 3:
            raise ValueError(
                f"length={length} is under 3, for a token, bos and eos; set "
                f"config.data.sequence_length"
            )
        self.length, self._texts, self._labels = length, texts, labels
        self._before = [] if bos_id is None else [bos_id]
        self._after = [] if eos_id is None else [eos_id]
        self._room = length - len(self._before) - len(self._after)
        # A text with marks of its own does not get a second pair.
        self._starts, self._stops = unmarked_bounds(texts, bos_id, eos_id)
        cut = int(np.sum(self._stops - self._starts > self._room))
        self.stores, self.census = (texts, labels), Census("texts", len(texts), length, cut=cut)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = range(len(self))[index]
        begin = self._starts[index]
        ids = self._texts.ids[begin : min(self._stops[index], begin + self._room)]
        # No packing: a class belongs to one text, so the rest of the row is padding.
        row = np.concatenate([self._before, ids, self._after]).astype(np.int32)
        tokens, segments, positions = window = np.zeros((3, self.length), np.int32)
        window[:, : len(row)] = row, np.ones(len(row)), np.arange(len(row))
        label = np.asarray(self._labels.ids[index : index + 1], np.int32)
        return {"tokens": tokens, "segments": segments, "positions": positions, "label": label}


def labelled_windows(documents: Documents, options: WindowOptions) -> LabelledTexts:
    """One window for each text, in the order of the documents."""
    return LabelledTexts(
        options.tokens(documents, "text"),
        options.tokens(documents, "label", Labels(options.labels)),
        options.length,
        bos_id=options.tokenizer.bos_id,
        eos_id=options.tokenizer.eos_id,
    )
