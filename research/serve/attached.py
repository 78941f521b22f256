"""The media in the messages of OpenAI's API: parts of type `image_url` and `input_audio`.

Nothing is fetched and no file is read: a picture is a "data:" URL, a sound base64 of a WAV.
"""

import threading
from collections.abc import Mapping
from typing import Any

from research.data.media_records import data_url
from research.infer.attached import Attached, attach, check_encoder
from research.serve.asked import Served
from research.serve.refusal import Refused

_KINDS = {"image_url": "image", "input_audio": "audio"}
# One at a time: a picture at the limit of pixels takes 200 MB while it is decoded.
_decoding = threading.Lock()


def has_media(body: Mapping[str, Any]) -> bool:
    """Whether a request has a part that `with_attached` would read."""
    return any(_kind(part) for _, parts in _contents(body) for part in parts)


def with_attached(body: dict[str, Any], served: Served) -> dict[str, Any]:
    """The request with `Attached` in the places of such parts; takes as long as they take to
    decode. `Refused` for what is no medium, is over a limit, and what the model does not read."""
    _check_room(body, served)
    messages, numbers = list(body["messages"]), dict.fromkeys(_KINDS.values(), 0)
    for at, parts in _contents(body):
        read: list[Any] = []
        for part in parts:
            if kind := _kind(part):
                read.append(_read(part, kind, numbers[kind], served))
                numbers[kind] += 1
            else:
                read.append(part)
        messages[at] = {**messages[at], "content": read}
    return {**body, "messages": messages}


def _contents(body: Mapping[str, Any]) -> list[tuple[int, list[Any]]]:
    """(number of a message, its content) of those with a content in parts."""
    messages = body.get("messages")
    found = enumerate(messages if isinstance(messages, list) else [])
    contents = [(at, one.get("content")) for at, one in found if isinstance(one, dict)]
    return [(at, parts) for at, parts in contents if isinstance(parts, list)]


def _kind(part: Any) -> str:
    """ "image" or "audio", "" for a part of another type."""
    name = part.get("type") if isinstance(part, dict) else None
    return _KINDS.get(name, "") if isinstance(name, str) else ""


def _check_room(body: Mapping[str, Any], served: Served) -> None:
    """`Refused` where a text has no room for so many media: before any is decoded."""
    tokens = 0
    for kind in filter(None, (_kind(part) for _, parts in _contents(body) for part in parts)):
        try:
            check_encoder(kind, served.soft)
        except ValueError as error:
            raise _refused(error) from None
        tokens += served.soft.places(kind)[1] if served.soft else 0
    if tokens >= served.length:
        raise _refused(
            f"its media take {tokens:,} tokens, and a text has at most {served.length:,}; send "
            "fewer"
        )


def _read(part: dict[str, Any], kind: str, number: int, served: Served) -> Attached:
    try:
        data = data_url(_url(part, kind))
        with _decoding:
            return attach(kind, data, served.soft)
    except ValueError as error:
        raise _refused(f"{kind} {number}: {error}") from None


def _url(part: dict[str, Any], kind: str) -> str:
    """The "data:" URL of a part. ValueError for any other value."""
    value = part.get(part["type"])
    if kind == "image":
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str) or not url.startswith("data:"):
            raise ValueError(
                'image_url must be {"url": "data:image/png;base64,..."}; nothing is fetched and no '
                "file is read here, so send the picture itself"
            )
        return url
    value = value if isinstance(value, dict) else {}
    if not isinstance(value.get("data"), str) or value.get("format") != "wav":
        raise ValueError(
            'input_audio must be {"data": BASE64, "format": "wav"}; convert other sounds with '
            "ffmpeg -i FILE NAME.wav"
        )
    return f"data:audio/wav;base64,{value['data']}"


def _refused(said: object) -> Refused:
    return Refused(str(said), param="messages")
