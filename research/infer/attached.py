"""Images and sounds in a conversation: read from files or bytes, and as places in its prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.data.conversations import with_text
from research.data.media.decoded import decoded
from research.data.media.kinds import Medium
from research.data.media.soft_tokens import SoftTokens
from research.data.media_encoder import MediaEncoder, check_places, mark
from research.data.tokenizers import Tokenizer
from research.infer.conversation import conversation, encode_conversation

# What prompts call the media of a kind.
PLURALS = {"image": "images", "audio": "sounds"}


@dataclass(frozen=True, eq=False)
class Attached:
    """A part of a message's content beside texts: its `kind`, "image" or "audio", and what the
    model's encoder reads of it, uint8 [frames, size, size, 3] or log-mel frames [1, frames,
    mels]."""

    kind: str
    content: np.ndarray


def attach(kind: str, source: bytes | Path, soft: SoftTokens | None) -> Attached:
    """The medium in a file or in bytes, for a model whose encoders are `soft`. ValueError for a
    model without one for it, and BadMedia for what cannot be read or is over a limit
    (`research.data.media.limits`)."""
    check_encoder(kind, soft)
    return Attached(kind, decoded(Medium(kind, source), soft or SoftTokens()))


def check_encoder(kind: str, soft: SoftTokens | None) -> None:
    """ValueError for a model that has no encoder for this kind of medium."""
    there = soft is not None and (soft.sound if kind == "audio" else soft.size)
    if not there:
        raise ValueError(
            f"the model reads no {PLURALS[kind]}; send text alone, or choose a model that has an "
            f"encoder of {PLURALS[kind]}"
        )


def encode_attached(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    soft: SoftTokens | None,
    tools: Sequence[Any] = (),
) -> tuple[list[int], dict[str, np.ndarray]]:
    """(ids of a conversation as of `conversation` and `encode_conversation`, its "images" and
    "sounds"). A medium stands where its part does, as in training (`research.data.media_encoder`).
    ValueError also where a text has the id of a place, or the template leaves a medium out."""
    attached = [part for message in messages for part in _attached(message)]
    marked = [_marked(number, message) for number, message in enumerate(messages)]
    marked = conversation(marked)
    if not attached or soft is None:
        return encode_conversation(tokenizer, marked, tools), {}
    encode = MediaEncoder(tokenizer, soft).ids
    ids = encode_conversation(tokenizer, marked, tools, encode=encode)
    check_places(soft, ids, [part.kind for part in attached])
    media = {}
    for kind, name in PLURALS.items():
        contents = [part.content for part in attached if part.kind == kind]
        if contents:
            media[name] = np.concatenate(contents)
    return ids, media


def _attached(message: Any) -> list[Attached]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return (
        [one for one in content if isinstance(one, Attached)] if isinstance(content, list) else []
    )


def _marked(number: int, message: Any) -> Any:
    """The message with one text for its content, marks in the places of media."""
    if not _attached(message):
        return message
    parts = [mark(one.kind) if isinstance(one, Attached) else one for one in message["content"]]
    return with_text(number, {**message, "content": parts})
