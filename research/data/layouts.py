"""Layouts: the kinds of records that objectives read. A new kind is one row of `LAYOUTS`.

records of a source --columns, read--> documents --windows--> windows of tokens
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from research.data import conversations
from research.data.chat_windows import conversation_windows
from research.data.documents import Documents, UnreadableRecord
from research.data.labelled import labelled_windows
from research.data.packing import text_windows
from research.data.pairs import pair_windows
from research.data.windows import WindowOptions, Windows

Columns = Mapping[str, str]  # our name of a column: the name that the data have for it


@dataclass(frozen=True)
class Layout:
    """A kind of records: how they become documents, and documents windows of tokens.

    fields    the fields of a document beside "path"; a tokenizer is trained on all of them
    columns   the sets of names that a query "?NAME=COLUMN" may use
    read      (record, {name: its column}) -> {field: text}; ValueError for an unsuitable record
    windows   (documents, options) -> windows with random access
    measured  the field whose size in bytes and under gzip is reported
    usual     {name: column} sets that are tried without a query, the first that the data have;
              () tries the names of `columns` themselves
    classes   the field that names the class of a record, "" for none
    """

    fields: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    read: Callable[[Mapping[str, Any], Columns], dict[str, str]]
    windows: Callable[[Documents, WindowOptions], Windows]
    measured: str
    usual: tuple[Columns, ...] = ()
    classes: str = ""


def read_texts(row: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """{name: text} of the columns. ValueError if one is missing, not text, or not UTF-8."""
    return {name: _text(row.get(column), column) for name, column in columns.items()}


def read_labelled(row: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """{"text", "label"}: a text, and the name or number of its class."""
    text, label = columns["text"], columns["label"]
    return {"text": _text(row.get(text), text), "label": _label(row.get(label), label)}


def read_conversation(row: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """{"conversation": the messages as JSON}; see `research.data.conversations`."""
    text = conversations.spell(conversations.conversation(row, columns))
    return {"conversation": text.encode("utf-8").decode("utf-8")}  # refuses half a surrogate pair


# By the name that an objective `reads`.
LAYOUTS: dict[str, Layout] = {
    "texts": Layout(("text",), (("text",),), read_texts, text_windows, measured="text"),
    "pairs": Layout(
        ("inputs", "targets"),
        (("inputs", "targets"),),
        read_texts,
        pair_windows,
        measured="targets",
    ),
    "labels": Layout(
        ("text", "label"),
        (("text", "label"),),
        read_labelled,
        labelled_windows,
        measured="text",
        classes="label",
    ),
    "conversations": Layout(
        ("conversation",),
        (("messages",), ("instruction", "output"), ("instruction", "input", "output")),
        read_conversation,
        conversation_windows,
        measured="conversation",
        usual=(
            {"messages": "messages"},
            {"messages": "conversations"},
            {name: name for name in ("instruction", "input", "output")},
            {name: name for name in ("instruction", "output")},
        ),
    ),
}


def choose_columns(query: str, columns: Sequence[str], source: str, layout: str) -> dict[str, str]:
    """{name in the layout: column of the data}, by the query, or by the usual names if it is empty.

    `columns` are those that the data have. `source` is quoted in messages, which show how to write
    it. ValueError for a query with other names than the layout's, and for columns that are missing.

    >>> choose_columns("text=content", ["content", "url"], "a.jsonl", "texts")
    {'text': 'content'}
    """
    row = LAYOUTS[layout]
    chosen = dict(parse_qsl(query, keep_blank_values=True))
    if not query:
        usual = row.usual or [{name: name for name in names} for names in row.columns]
        there = [dict(names) for names in usual if set(names.values()) <= set(columns)]
        chosen = there[0] if there else dict(usual[-1])
    if set(chosen) not in map(set, row.columns) or not set(chosen.values()) <= set(columns):
        plain = source.partition("?")[0]
        first, *others = (
            "?" + "&".join(f"{name}=FIELD" for name in names) for names in row.columns
        )
        raise ValueError(
            f"{source} has the fields {', '.join(sorted(columns)) or '(none)'}; name the wanted "
            f"ones, as in '{plain}{first}'{''.join(f' or {other!r}' for other in others)}"
        )
    return chosen


def read_record(
    row: Mapping[str, Any], columns: Columns, layout: str, file: str, index: int
) -> dict[str, str]:
    """The fields of a record as text. UnreadableRecord, which names the file and the index, for a
    record that does not suit the layout."""
    try:
        return LAYOUTS[layout].read(row, columns)
    except ValueError as error:  # UnicodeError is one
        raise UnreadableRecord(file, index, error) from None


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str | bytes):
        raise ValueError(f"field {column!r} is {type(value).__name__}, wanted text")
    # JSON can spell half a surrogate pair, which no tokenizer takes.
    return (value.encode("utf-8") if isinstance(value, str) else value).decode("utf-8")


def _label(value: Any, column: str) -> str:
    """The text of a class's name or number, which is not negative: TFDS has -1 where a test set
    keeps its labels back."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str) and value.strip() or isinstance(value, int) and value >= 0:
        return str(int(value) if isinstance(value, bool) else value)
    raise ValueError(f"field {column!r} is {value!r}, wanted the name or number of a class")
