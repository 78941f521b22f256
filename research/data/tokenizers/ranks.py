"""GPT-2's ranks: a text file with one `base64(token) rank` a line, as tiktoken reads them."""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from research.data.tokenizers import huggingface
from research.data.tokenizers.tokenizer import Tokenizer

_END = "<|endoftext|>"
# GPT-2's split never leaves a mark and a letter in one piece, contractions apart; those of later
# models do.
_OTHER_SPLIT = re.compile(rb" ?[!-/:-@\[-`{-~]+[A-Za-z]")
_CONTRACTIONS = (b"'s", b"'t", b"'re", b"'ve", b"'m", b"'ll", b"'d")


def load(content: bytes) -> Tokenizer:
    """Byte-level BPE with GPT-2's split and these ranks; `<|endoftext|>` follows the last rank and
    is the end of text.

    ValueError for ranks that are not 0, 1, 2, ..., that lack a byte or cannot be reached by
    merging, or that were made for another split.
    """
    ranks = _parse(content)
    characters = huggingface.byte_characters()
    spell = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = [[spell[left], spell[right]] for left, right in merges_from_ranks(ranks)]
    vocab = {spell[token]: rank for token, rank in ranks.items()}
    return huggingface.load(json.dumps(_spec(vocab, merges)).encode(), {})


def merges_from_ranks(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pair that makes each token longer than a byte, in order of rank.

    A token's rank is when it was learnt, so merging its bytes with the earlier tokens only leaves
    just that pair.
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) == 1:
            continue
        parts = _merge(token, ranks)
        if len(parts) != 2:
            raise ValueError(
                f"no earlier pair makes token {token!r} of rank {ranks[token]}; use a "
                f"tokenizer.json"
            )
        yield parts[0], parts[1]


def _merge(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    parts = [token[n : n + 1] for n in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, ranks[token]) for left, right in zip(parts, parts[1:])]
        at = pairs.index(min(pairs))
        if pairs[at] >= ranks[token]:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _parse(content: bytes) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"line {number} is {line[:40]!r}, wanted the base64 of a token and its rank"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"the ranks of its {len(ranks)} different tokens are not 0 to {len(ranks) - 1}, each "
            f"once"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(
            f"{len(missing)} of the 256 bytes have no rank, {missing[0]:#04x} the first"
        )
    for token in ranks:
        if _OTHER_SPLIT.match(token) and token not in _CONTRACTIONS:
            raise ValueError(
                f"token {token!r} cannot come from GPT-2's split; use that model's tokenizer.json"
            )
    return ranks


def _spec(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    """The tokenizer.json. ByteLevel's own regex is GPT-2's split."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(vocab), "content": _END, **flags}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
