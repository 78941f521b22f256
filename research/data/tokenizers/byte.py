"""The 256 bytes as tokens: ids 0 to 255 are bytes, the reserved special tokens follow."""

import hashlib
import re

import numpy as np

from research.data.tokenizers.special import RESERVED, find_roles
from research.data.tokenizers.tokenizer import Aligned, Tokenizer, begins_word

_SPECIAL = {name: 256 + n for n, name in enumerate(RESERVED)}
# With a group, `split` returns the special tokens too, between the texts around them.
_SPLIT = re.compile("(" + "|".join(map(re.escape, RESERVED)) + ")")


def load() -> Tokenizer:
    """The tokenizer "bytes": UTF-8 bytes as ids, lossless for any text."""
    starts = [begins_word(bytes([byte])) for byte in range(256)] + [True] * len(RESERVED)
    return Tokenizer(
        kind="bytes",
        vocab_size=256 + len(RESERVED),
        **find_roles(_SPECIAL, {}),
        word_starts=np.array(starts),
        # There is no file to hash: the reserved tokens are all that could ever change.
        fingerprint=hashlib.sha256(repr(("bytes", RESERVED)).encode()).hexdigest(),
        files={},
        encode_texts=_encode_texts,
        align_texts=_align_texts,
        decode_ids=_decode_ids,
    )


def spelt_bytes() -> tuple[list[bytes], list[int]]:
    """(the bytes of each id, ids of the special tokens)."""
    spelt = [bytes([byte]) for byte in range(256)] + [name.encode() for name in RESERVED]
    return spelt, list(_SPECIAL.values())


def _encode_texts(texts: list[str]) -> list[list[int]]:
    return [
        [token_id for part in _SPLIT.split(text) for token_id in _encode_part(part)]
        for text in texts
    ]


def _encode_part(part: str) -> list[int]:
    return [_SPECIAL[part]] if part in _SPECIAL else list(part.encode())


def _align_texts(texts: list[str]) -> list[Aligned]:
    return [_align(text) for text in texts]


def _align(text: str) -> Aligned:
    # Places count characters, and a character beyond ASCII is several bytes: all of its tokens
    # have the place of the whole character.
    ids, places, at = [], [], 0
    for part in _SPLIT.split(text):
        for piece in [part] if part in _SPECIAL else part:
            ids += (new := _encode_part(piece))
            places += [(at, at + len(piece))] * len(new)
            at += len(piece)
    return ids, places


def _decode_ids(ids: list[int]) -> str:
    # Joined before they are decoded: the bytes of a character are tokens of their own.
    pieces = (
        bytes([token_id]) if token_id < 256 else RESERVED[token_id - 256].encode()
        for token_id in ids
    )
    return b"".join(pieces).decode(errors="replace")
