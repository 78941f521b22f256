"""`Tokenizer`: one type for all kinds of tokenizers, made by the other files of this folder."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from research.data.tokenizers.template_files import write_templates
from research.files import replacing, write_json

RECORD = "fingerprint.json"  # what a saved folder says about itself

# (ids of a text, the characters of each id as (start, stop) in the text).
Aligned = tuple[list[int], list[tuple[int, int]]]


class UnknownTokenizer(ValueError):
    """The files are a tokenizer of a kind that there is no reader for; the weights beside it can be
    read all the same."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back.

    kind           "bytes", "huggingface", "sentencepiece" or "marian"
    vocab_size     V; all ids are below it
    bos_id, ...    ids of the special tokens, None for one that the vocabulary lacks
    sentinel_ids   ids of T5's sentinels, in order; () without
    word_starts    bool [V], true for tokens that begin a word, for masking whole words
    fingerprint    sha256; equal ones mean equal ids for every text and equal special tokens
    files          {name: content} of the files that `save` writes and loading reads
    chat_template  jinja source that turns messages into text, None without; not in the fingerprint
    separators     ends of a text that lie between two texts which are read as one: 2 of RoBERTa
    templates      further ones by name, such as "tool_use" for conversations with tools
    template_variables  what templates see beside the messages, such as {"enable_thinking": False}
    targets        the tokenizer of what an encoder-decoder writes, None if it is this one

    The remaining fields are the functions behind `encode`, `decode` and `align_batch`.
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
    templates: Mapping[str, str] = field(default_factory=dict)
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    targets: "Tokenizer | None" = None
    separators: int = 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text. No special tokens are added; where the text contains the string of a
        special token, that becomes the token."""
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
        """`encode_batch`, and for each id the characters of the text that it stands for. ValueError
        for a text that UTF-8 cannot hold."""
        try:
            return self.align_texts(texts)
        except (TypeError, RuntimeError, UnicodeEncodeError):
            for index, text in enumerate(texts):
                refuse_surrogates(index, text)
            raise

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens as their strings; the inverse of `encode` for a
        lossless tokenizer.

        U+FFFD stands for an id outside the vocabulary and for bytes that are not UTF-8. A caller
        that prints tokens as they arrive should hold back a trailing U+FFFD: it may be the first
        half of a character that the next token completes.
        """
        # Runs of known ids are decoded together: a character may be spread over several tokens.
        parts, known = [], []
        for token_id in map(int, ids):
            if 0 <= token_id < self.vocab_size:
                known.append(token_id)
            else:
                parts += [self.decode_ids(known), "\ufffd"]
                known = []
        return "".join(parts) + self.decode_ids(known)

    def save(self, directory: str | Path) -> None:
        """Writes the files that `load_tokenizer(directory)` reads, each atomically; transformers
        and sentencepiece can read the model file too."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        # Bytes as they were read: a file that goes through a run unchanged stays the same file.
        for name, content in self.files.items():
            with replacing(folder / name) as file:
                file.write(content)
        write_templates(folder, self.chat_template, self.templates)
        record = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
        }
        if self.template_variables:
            record["template_variables"] = self.template_variables
        write_json(folder / RECORD, record)  # last, so that a folder with a record is whole


def begins_word(token: str | bytes) -> bool:
    """True if a word begins with this token: its first character is no letter, digit, combining
    mark or underscore, so most often a space.

    Only the token itself is looked at. The first word of a line therefore counts as part of the
    line break before it, and a text in a script without spaces is one word.

    >>> begins_word(" house"), begins_word("ing")
    (True, False)
    """
    if isinstance(token, bytes):
        # 10xxxxxx continues a UTF-8 character, which another token has begun.
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
    """ValueError if the text, number `index` of its batch, has half a surrogate pair, which UTF-8
    cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {index} has the lone surrogate {text[error.start]!a} at {error.start}, which "
            f"is no character; "
            "read the file with errors='replace'"
        ) from None
