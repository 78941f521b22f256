"""GPT-2's vocabulary as tiktoken stores it: a text file with `base64(token) rank` on each line."""

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
    """The byte-level BPE tokenizer of a ranks file, with GPT-2's way of splitting text into words.
    `<|endoftext|>`, the end of text, gets the id after the last rank.

    ValueError for ranks that are not 0, 1, 2, ..., a byte without a rank, a token that no merge
    of earlier tokens makes, and a vocabulary that was made with another split.
    """
    ranks = _parse(content)
    # A tokenizer.json spells bytes as printable characters, tiktoken's file as base64.
    characters = huggingface.byte_characters()
    spell = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = [[spell[left], spell[right]] for left, right in merges_from_ranks(ranks)]
    vocab = {spell[token]: rank for token, rank in ranks.items()}
    return huggingface.load(json.dumps(_spec(vocab, merges)).encode(), {})


def merges_from_ranks(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pair of tokens that merge into each token of more than one byte, in order of rank.

    The file has no merges. They are recovered: tokens are ranked in the order in which they were
    learnt, so merging the bytes of a token by the earlier ranks alone ends in the two tokens that
    it was made of. ValueError if more than two are left.

    >>> list(merges_from_ranks({b"a": 0, b"b": 1, b"ab": 2}))
    [(b'a', b'b')]
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) == 1:
            continue
        pieces = _merge(token, ranks)
        if len(pieces) != 2:
            raise ValueError(
                f"no earlier pair makes token {token!r} of rank {ranks[token]}; use a "
                f"tokenizer.json"
            )
        yield pieces[0], pieces[1]


def _merge(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    # Slices, as indexing bytes gives integers.
    pieces = [token[n : n + 1] for n in range(len(token))]
    while len(pieces) > 2:
        # The lowest rank is merged first, as BPE does; pairs that are no token, or one learnt
        # later than this one, count as out of reach.
        pairs = [ranks.get(left + right, ranks[token]) for left, right in zip(pieces, pieces[1:])]
        at = pairs.index(min(pairs))
        if pairs[at] >= ranks[token]:
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


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
    # Without all bytes some text could not be encoded.
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
    """The tokenizer.json of this vocabulary. `use_regex` switches on ByteLevel's own regular
    expression, which is GPT-2's split."""
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
