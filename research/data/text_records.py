"""Records of texts: columns of text, and a text with the name or number of its class."""

import re
from collections.abc import Mapping
from typing import Any

Columns = Mapping[str, str]  # our name of a column: the name that the data have for it


def read_texts(row: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """{name: text} of the columns. ValueError if one is missing, not text, or not UTF-8."""
    return {name: _text(row.get(column), column) for name, column in columns.items()}


def read_labelled(row: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    """{"text", "label"}: a text, and the name or number of its class."""
    text, label = columns["text"], columns["label"]
    return {"text": _text(row.get(text), text), "label": _label(row.get(label), label)}


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str | bytes):
        raise ValueError(f"field {column!r} is {type(value).__name__}, wanted text")
    # JSON can spell half a surrogate pair, which no tokenizer takes.
    return (value.encode("utf-8") if isinstance(value, str) else value).decode("utf-8")


def _label(value: Any, column: str) -> str:
    """The name of a class, or its number without a fraction: 1, 1.0, "1" and "1.0" are one class,
    since tables turn a column of whole numbers with a gap into floats. Negative numbers are none:
    TFDS has -1 where a test set keeps its labels back."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    value = value.item() if hasattr(value, "item") else value  # a NumPy scalar of TFDS
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\d+\.0+", value.strip()):
        value = value.strip().partition(".")[0]
    if isinstance(value, str) and value.strip() or isinstance(value, int) and value >= 0:
        return str(int(value) if isinstance(value, bool) else value)
    raise ValueError(f"field {column!r} is {value!r}, wanted the name or number of a class")
