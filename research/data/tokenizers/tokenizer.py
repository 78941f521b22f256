"""What every kind of tokenizer offers."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from research.files import write_json

RECORD = "fingerprint.json"  # what a saved folder says about itself
CHAT_TEMPLATE = "chat_template.jinja"

# Ids of a text, and for each id the (start, stop) in the text of the characters that it stands for.
Aligned = tuple[list[int], list[tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back.

    Ids are below `vocab_size`; a role the vocabulary has no token for is None. `sentinel_ids` mark
    removed spans, in order. Equal `fingerprint`s (sha256) mean equal ids for every text and equal
    roles. `word_starts` bool [V] says which tokens begin a word, for masking whole words. `files`
    is what `save` writes and loading reads. `chat_template` is the jinja source that makes a text
    of a conversation, None where there is none; it has no part in the fingerprint.
    """

    kind: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]
    word_starts: np.ndarray
    fingerprint: str
    files: Mapping[str, bytes]
    encode_texts: Callable[[list[str]], list[list[int]]]
    decode_ids: Callable[[list[int]], str]
    align_texts: Callable[[list[str]], list[Aligned]]
    chat_template: str | None = None

    def encode(self, text: str) -> list[int]:
        """Ids of the text, none added around it; the string of a special token becomes that
        token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on all cores. ValueError for a text that UTF-8 cannot hold."""
        try:
            return self.encode_texts(texts)
        except (TypeError, RuntimeError, UnicodeEncodeError):
            for index, text in enumerate(texts):
                refuse_surrogates(index, text)
            raise

    def align_batch(self, texts: list[str]) -> list[Aligned]:
        """`encode_batch` with the place of each token in its text. ValueError for a text that UTF-8
        cannot hold."""
        try:
            return self.align_texts(texts)
        except (TypeError, RuntimeError, UnicodeEncodeError):
            for index, text in enumerate(texts):
                refuse_surrogates(index, text)
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """The text, special tokens as their strings; the inverse of `encode` where the kind is
        lossless.

        U+FFFD stands for bytes that are not UTF-8, such as the first half of a letter while tokens
        stream in, and for ids outside the vocabulary. Hold back a trailing U+FFFD until the next
        token when printing as tokens come.
        """
        parts, known = [], []
        for token_id in map(int, ids):
            if 0 <= token_id < self.vocab_size:
                known.append(token_id)
            else:
                parts += [self.decode_ids(known), "\ufffd"]
                known = []
        return "".join(parts) + self.decode_ids(known)

    def save(self, directory: str | Path) -> None:
        """Write all that `load_tokenizer(directory)` needs; other libraries read the model file in
        there too."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if self.chat_template is not None:
            (folder / CHAT_TEMPLATE).write_text(self.chat_template, encoding="utf-8", newline="")
        # Last, so that a folder with a record is whole.
        write_json(
            folder / RECORD,
            {"kind": self.kind, "vocab_size": self.vocab_size, "fingerprint": self.fingerprint},
        )


def begins_word(token: str | bytes) -> bool:
    """Whether a word begins with this token: its first character is no letter, digit, mark or
    underscore.

    The token alone decides, so a line's first word counts as part of the line break before it, and
    a text in a script without spaces as one word.
    """
    if isinstance(token, bytes):
        if token[:1] >= b"\x80" and token[:1] < b"\xc0":
            return False
        token = token.decode(errors="replace")
    first = token[:1]
    # U+FFFD is the start of a character cut in two, most often a letter.
    return not (
        first.isalnum()
        or first in ("_", "\ufffd")
        or unicodedata.category(first or " ").startswith("M")
    )


def refuse_surrogates(index: int, text: str) -> None:
    """ValueError if UTF-8 cannot hold the text, the `index`th of its batch."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {index} has the lone surrogate {text[error.start]!a} at {error.start}, which "
            f"is no character; "
            "read the file with errors='replace'"
        ) from None
