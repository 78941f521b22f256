"""Conversations with media as token ids, with the places of soft tokens."""

import re
from collections.abc import Sequence
from typing import Any

from research.data.chat import ChatEncoder, Messages
from research.data.chat_sandbox import ChatRefused
from research.data.documents import digest
from research.data.media.kinds import KINDS
from research.data.media.soft_tokens import SoftTokens
from research.data.tokenizers import Tokenizer

# A letter of Unicode's private area for each kind goes through the chat template in the place of a
# medium: no tokenizer has one for it, and texts have no use for these.
_MARKS = {kind: chr(0xE0F0 + number) for number, kind in enumerate(KINDS)}
_KIND_OF = {mark: kind for kind, mark in _MARKS.items()}
_NOTHING = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
_MARK = re.compile(f"([{''.join(_KIND_OF)}])")


def mark(kind: str) -> str:
    """The letter that stands for a medium of a kind in a text for `MediaEncoder.ids`."""
    return _MARKS[kind]


def check_places(soft: SoftTokens, ids: Sequence[int], kinds: Sequence[str]) -> None:
    """ChatRefused unless ids have as many places as media of these kinds take."""
    wanted = dict.fromkeys(soft.ids, 0)
    for token, count in map(soft.places, kinds):
        wanted[token] += count
    for token, count in wanted.items():
        if ids.count(token) != count:
            raise ChatRefused(
                f"the rendered text has {ids.count(token)} places of soft tokens where its "
                f"media take {count}; the chat template leaves one out, or the text has the "
                f"token of a place, id {token}"
            )


class MediaEncoder(ChatEncoder):
    """`ChatEncoder` for contents in parts {"type": "text", "text"} and {"type": KIND}. A medium
    becomes the places of its kind (`SoftTokens.places`), which are never learnt."""

    def __init__(self, tokenizer: Tokenizer, soft: SoftTokens):
        super().__init__(tokenizer)
        self._soft = soft
        self.vocab_size = max(self.vocab_size, max(soft.ids) + 1)
        shape: tuple[int, ...] = (soft.token, soft.tokens, soft.frames, soft.video_frames)
        if soft.sound:
            shape += (soft.sound.token, soft.sound.tokens)
        self.fingerprint = digest("media", self.fingerprint, *map(str, shape))

    def encode_batch(
        self, conversations: Sequence[Messages], tools: Sequence[Sequence[Any]] = ()
    ) -> list[tuple[list[int], list[bool]] | ChatRefused]:
        """As of `ChatEncoder`; ChatRefused also for a text with the id of a place of its own, and
        one in which the template has left out a medium."""
        refused = [self._refused(messages) for messages in conversations]
        # One that is refused is a text without media, to keep its place.
        marked = [
            [_marked(message) for message in messages] if one is None else _NOTHING
            for one, messages in zip(refused, conversations)
        ]
        found = zip(refused, super().encode_batch(marked, tools), conversations)
        return [
            no or (one if isinstance(one, ChatRefused) else self._checked(one, messages))
            for no, one, messages in found
        ]

    def _refused(self, messages: Messages) -> ChatRefused | None:
        """Why a conversation with media that the model has no encoder for is refused."""
        try:
            for message in messages:
                for part in message["content"]:
                    if part["type"] != "text":
                        self._soft.places(part["type"])
        except ValueError as error:
            return ChatRefused(str(error))
        return None

    def _checked(
        self, encoded: tuple[list[int], list[bool]], messages: Messages
    ) -> tuple[list[int], list[bool]] | ChatRefused:
        ids, mask = encoded
        kinds = [p["type"] for m in messages for p in m["content"] if p["type"] != "text"]
        try:
            check_places(self._soft, ids, kinds)
        except ChatRefused as error:
            return error
        return ids, [said and token not in self._soft.ids for token, said in zip(ids, mask)]

    def ids(self, text: str) -> list[int]:
        """The ids of a rendered text, with the places of a medium for its `mark`."""
        return self._align([text])[0][0]

    def _align(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        # A place ends a stretch of text as a special token does, so stretches are encoded apart.
        pieces = [_MARK.split(text) for text in texts]
        words = iter(super()._align([word for one in pieces for word in one[::2]]))
        return [self._joined(one, words) for one in pieces]

    def _joined(self, pieces: list[str], words: Any) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids and places of a text in pieces: words, a mark, words, ..."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        start = 0
        for number, piece in enumerate(pieces):
            if number % 2:
                token, count = self._soft.places(_KIND_OF[piece])
                ids += [token] * count
                places += [(start, start + 1)] * count
            else:
                own, at = next(words)
                ids += own
                places += [(start + first, start + stop) for first, stop in at]
            start += len(piece)
        return ids, places


def _marked(message: Any) -> dict[str, Any]:
    """The message with one text for its content, marks in the places of media. ChatRefused is not
    raised here: a mark that a text has itself is one place too many, and counted."""
    parts = [_MARKS.get(part["type"], part.get("text", "")) for part in message["content"]]
    return {**message, "content": "".join(parts)}
