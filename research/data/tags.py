"""Records of texts whose words have tags, such as B-PER for the first word of a person's name.

    {"tokens": ["Ada", "writes"], "ner_tags": ["B-PER", "O"]}
    {"text": "Ada writes", "entities": [{"start": 0, "end": 3, "label": "PER"}]}

Tags may be numbers, which config.data.label_names names. Spans count characters; a span may also be
[start, end, label].
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from research.data.census import Census
from research.data.conversations import plain
from research.data.documents import Documents, digest
from research.data.framing import Frame
from research.data.stretches import Places, SplitCensus, all_stretches, token_span
from research.data.tokens import TokenStore
from research.data.windows import WindowOptions

_WORD = re.compile(r"\w+|[^\w\s]")


def read_tagged(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """{"text", "tags": [[first character, last + 1, tag], ...] as JSON}, a tag for each word. Words
    are joined by spaces. ValueError for words and tags of different numbers, and for spans that
    overlap or lie outside the text."""
    if "entities" in columns:
        text = row.get(columns["text"])
        if not isinstance(text, str):
            raise ValueError(f"field {columns['text']!r} is {type(text).__name__}, wanted text")
        tags = spans_to_tags(text, list(_spans(plain(row.get(columns["entities"])))))
    else:
        words, names = (plain(row.get(columns[name])) for name in ("tokens", "tags"))
        text, tags = _joined(words, names, columns)
    text.encode("utf-8")  # refuses half a surrogate pair
    return {"text": text, "tags": json.dumps(tags)}


def _joined(words: Any, names: Any, columns: Mapping[str, str]) -> tuple[str, list[list[Any]]]:
    for value, name in ((words, "tokens"), (names, "tags")):
        if not isinstance(value, list) or not value:
            raise ValueError(f"field {columns[name]!r} is no list of words or tags: {value!r:.40}")
    if len(words) != len(names):
        raise ValueError(f"{len(words)} words but {len(names)} tags; each word has one")
    tags, at = [], 0
    for word, name in zip(words, names):
        if not isinstance(word, str):
            raise ValueError(f"word {word!r} is {type(word).__name__}, wanted text")
        tags.append([at, at + len(word), _tag(name)])
        at += len(word) + 1
    return " ".join(words), tags


def _tag(name: Any) -> str:
    number = isinstance(name, int | float) and not isinstance(name, bool) and name == int(name)
    if number and name >= 0:
        return str(int(name))
    if isinstance(name, str) and name.strip():
        return name.strip()
    raise ValueError(f"tag {name!r} is no name and no number of a class")


def _spans(value: Any) -> Iterable[tuple[int, int, str]]:
    for one in value or []:
        if isinstance(one, Mapping):
            one = [one.get("start"), one.get("end"), one.get("label")]
        if not isinstance(one, list | tuple) or len(one) != 3 or not isinstance(one[2], str):
            raise ValueError(f"span {one!r:.60} is no {{'start', 'end', 'label'}}")
        if type(one[0]) is not int or type(one[1]) is not int:
            raise ValueError(f"span {one!r:.60} has no numbers of characters")
        yield one[0], one[1], one[2].strip()


def words_of(text: str) -> list[tuple[int, int]]:
    """The bounds of each word of a text: a run of letters and digits, or one other character."""
    return [match.span() for match in _WORD.finditer(text)]


def spans_to_tags(text: str, spans: Iterable[tuple[int, int, str]]) -> list[list[Any]]:
    """[first character, last + 1, tag] of each word of a text: B-LABEL for the first of a span,
    I-LABEL for its others, O beside spans. Words are those of `words_of`."""
    words = words_of(text)
    tags = [[start, stop, "O"] for start, stop in words]
    for start, stop, label in spans:
        if not 0 <= start < stop <= len(text):
            raise ValueError(f"span {[start, stop, label]} is not in a text of {len(text)}")
        inside = [n for n, (first, last) in enumerate(words) if first < stop and last > start]
        if any(tags[n][2] != "O" for n in inside):
            raise ValueError(f"span {[start, stop, label]} overlaps another; one tag a word")
        for place, n in enumerate(inside):
            tags[n][2] = f"{'I' if place else 'B'}-{label}"
    return tags


def tag_names(tags: str) -> list[str]:
    """The tags in a field "tags"."""
    return [name for _, _, name in json.loads(tags)]


class _Numbered:
    """A tokenizer of the field "tags": for each word its first character, its last + 1 and the
    number of its tag."""

    vocab_size = 2**32 - 1

    def __init__(self, names: tuple[str, ...]):
        self.fingerprint = digest("tags", *names, "")
        self._numbers = {name: number for number, name in enumerate(names)}

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Three numbers a word. ValueError for a tag that has none."""
        rows = [json.loads(text) for text in texts]
        unknown = sorted({name for row in rows for _, _, name in row} - self._numbers.keys())
        if unknown:
            raise ValueError(
                f"tag {unknown[0]!r} is in the held-out data alone, or has no name in "
                "config.data.label_names; give training data of every tag"
            )
        return [
            [n for start, stop, name in row for n in (start, stop, self._numbers[name])]
            for row in rows
        ]


class TaggedTexts:
    """Windows of one text each, or of a stretch of a long one: [bos] text [eos].

    `[i]` is a dict of int32 [length] arrays: "tokens", "segments" and "positions" as `Frame.row`
    gives them, "labels", the number of a word's tag at its first token, and "labelled", 1 there and
    0 elsewhere. Of what two stretches share each has the labels of its own half.
    """

    def __init__(self, stores: Mapping[str, TokenStore], options: WindowOptions):
        self._stores, self.length = stores, options.length
        self.stores = tuple(stores.values())
        self._frame = Frame.of(options.tokenizer)
        counts, room = np.diff(stores["text"].offsets), self._frame.room(self.length)
        self._windows = all_stretches(counts.tolist(), [room] * len(counts), options.overlap)
        split = int((counts > room).sum())
        self.census: Census = SplitCensus(
            "texts",
            len(counts),
            self.length,
            split=split,
            windows=len(self._windows) - len(counts) + split,
            overlap=options.overlap,
        )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record, stretch = self._windows[index]
        ids, places, tags = (
            self._stores[name].ids[slice(*self._stores[name].offsets[record : record + 2])]
            for name in ("text", "places", "tags")
        )
        labels, labelled = np.zeros((2, self.length), np.int32)
        starts, stops = places.reshape(-1, 2).T
        for start, stop, number in tags.reshape(-1, 3).tolist():
            first, last = token_span(starts, stops, start, stop)
            # A word of characters that the tokenizer drops has no token to carry its tag.
            if first <= last and stretch.first <= first < stretch.last:
                at = first - stretch.start + self._frame.start()
                labels[at], labelled[at] = number, 1
        row = self._frame.row(self.length, ids[stretch.start : stretch.stop])
        del row["token_types"]
        return row | {"labels": labels, "labelled": labelled}


def tag_windows(documents: Documents, options: WindowOptions) -> TaggedTexts:
    """Windows of tagged texts, in the order of the documents."""
    stores = {
        "text": options.tokens(documents, "text"),
        "places": options.tokens(documents, "text", Places(options.tokenizer)),
        "tags": options.tokens(documents, "tags", _Numbered(options.labels)),
    }
    return TaggedTexts(stores, options)
