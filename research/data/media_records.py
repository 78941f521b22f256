"""The media of a record, and the conversation with their places.

A record is {"messages": [...]} as in `research.data.conversations`, with the media in columns
"image", "images", "audio", "video" or in the parts of a content, or {"image": ..., "text": ...} and
the like, a medium with its caption. A medium is a path, beside the file of the records or absolute;
bytes; {"bytes", "path"} as Hugging Face's tables have it; or a "data:" URL. Nothing is fetched.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.data import conversations
from research.data.media.kinds import KINDS, Medium
from research.data.media.limits import LIMITS

# Columns with media in the order of their places, and the kind of these.
MEDIA_COLUMNS = {"image": "image", "images": "image", "audio": "audio", "audios": "audio"}
MEDIA_COLUMNS |= {"video": "video", "videos": "video"}
# What stands in a text for a medium: LLaVA's and LLaMA-Factory's spelling.
_PLACES = re.compile(r"<(image|audio|video)>")
# Parts of OpenAI's messages that hold a medium, and those of transformers' ("type" is the kind).
_OPENAI = {"image_url": "image", "input_audio": "audio", "video_url": "video"}


def read_media(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """{"conversation": messages as JSON, whose contents are lists of {"type": "text", "text"} and
    {"type": KIND}, the place of a medium}. ValueError for a record whose places and media are not
    as many, and as of `conversations.conversation`."""
    messages = _messages(row, columns)
    parted = [_parted(number, message) for number, message in enumerate(messages)]
    places = [part["type"] for one in parted for part in one["content"] if part["type"] != "text"]
    media = media_of(row, columns, Path())
    if not media:
        raise ValueError("it has no image, audio or video; train texts with objective chat")
    given = [medium.kind for medium in media]
    if not places:  # as LLaVA's records of one picture: it stands before the first question
        first = next(one for one in parted if one["role"] == "user")
        first["content"] = [{"type": kind} for kind in given] + first["content"]
        places = given
    for kind in KINDS:
        if places.count(kind) != given.count(kind):
            raise ValueError(
                f"it has {places.count(kind)} places for {kind} and {given.count(kind)} {kind} "
                "media; each medium needs one place, <image>, <audio> or <video>"
            )
    # Media stand in the order of their places, so that one list serves them.
    return {"conversation": conversations.spell(parted, conversations.tools(row, columns))}


def read_caption(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """{"text": what is said of a medium}. ValueError for a record without a text or a medium."""
    text = row.get(columns["text"])
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"field {columns['text']!r} is no text that describes a medium")
    if not media_of(row, columns, Path()):
        raise ValueError("it has no image, audio or video")
    return {"text": text.strip()}


def media_of(row: Mapping[str, Any], columns: Mapping[str, str], folder: Path) -> list[Medium]:
    """The media of a record in the order of their places: those in parts of contents, then those
    of the columns by kind. Paths are taken from `folder`."""
    by_kind: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for name, kind in MEDIA_COLUMNS.items():
        value = row.get(columns.get(name, name))
        if value is not None:
            by_kind[kind] += value if isinstance(value, list | tuple) else [value]
    found = []
    for kind, value in _places(row, columns):
        if value is None:
            if not by_kind[kind]:
                continue  # `read_media` counts them
            value = by_kind[kind].pop(0)
        found.append(Medium(kind, _source(value, folder)))
    rest = [(kind, value) for kind, values in by_kind.items() for value in values]
    return found + [Medium(kind, _source(value, folder)) for kind, value in rest]


def _messages(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """The checked messages, of which a part without text has a place's spelling."""
    if "text" in columns:  # a caption
        text = read_caption(row, columns)["text"]
        question = row.get(columns.get("question", "")) if "question" in columns else None
        heard = row.get(columns.get("audio", "audio")) is not None
        usual = "Write down what is said." if heard else "Describe it."
        asked = [{"role": "user", "content": str(question or usual)}]
        return conversations.checked([*asked, {"role": "assistant", "content": text}])
    listed = conversations.listed(row, columns["messages"])
    spelt = [_spelt(message) if isinstance(message, Mapping) else message for message in listed]
    return conversations.checked(spelt, row, columns)


def _spelt(message: Mapping[str, Any]) -> dict[str, Any]:
    name = "content" if "content" in message else "value"
    parts = message.get(name)
    if not isinstance(parts, list):
        return dict(message)
    return {**message, name: [_spelt_part(part) for part in parts]}


def _spelt_part(part: Any) -> Any:
    kind = _kind_of_part(part)
    return {"type": "text", "text": f"<{kind}>"} if kind else part


def _kind_of_part(part: Any) -> str:
    """The kind of medium that a part of a content is, "" for text."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    return _OPENAI.get(kind, kind if kind in KINDS else "") if isinstance(kind, str) else ""


def _places(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[tuple[str, Any]]:
    """(kind, the medium in the part itself or None) of every place of the messages, in order."""
    if "messages" not in columns:
        return []
    places: list[tuple[str, Any]] = []
    for message in conversations.listed(row, columns["messages"]):
        content = message.get("content", message.get("value"))
        for part in content if isinstance(content, list) else [content]:
            kind = _kind_of_part(part)
            if kind:
                places.append((kind, _value_of_part(part, kind)))
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                places += [(name, None) for name in _PLACES.findall(text)]
    return places


def _value_of_part(part: Mapping[str, Any], kind: str) -> Any:
    value = part.get(part["type"], part.get(kind, part.get("path", part.get("url"))))
    if isinstance(value, Mapping) and isinstance(value.get("data"), str):  # OpenAI's audio
        return f"data:;base64,{value['data']}"
    return value.get("url", value) if isinstance(value, Mapping) else value


def _parted(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its content in parts: texts, and the places of media between them."""
    text = conversations.with_text(number, message)["content"] or ""
    parts: list[dict[str, str]] = []
    for at, piece in enumerate(_PLACES.split(text)):
        if at % 2:
            parts.append({"type": piece})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return {**message, "content": parts}


def _source(value: Any, folder: Path) -> bytes | Path:
    """Bytes, or the path of a file. ValueError for a value that is neither."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.startswith("data:"):
        return data_url(value)
    if isinstance(value, str) and re.match(r"[a-z][a-z0-9+.-]+://", value):
        raise ValueError(f"{value[:60]} is on the network, and nothing is fetched; download it")
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"a medium is {type(value).__name__}, wanted a path or bytes")
    return folder / value


def data_url(url: str) -> bytes:
    """The bytes in a "data:" URL. ValueError for one that is not in base64, or is too long."""
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError(f"{url[:40]!r} is no data URL in base64")
    if len(data) > LIMITS.file_bytes * 4 // 3:
        raise ValueError(f"a data URL has {len(data):,} letters; give a file")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a data URL is no base64: {error}") from None
