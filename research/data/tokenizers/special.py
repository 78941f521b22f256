"""Special tokens: those our own vocabularies reserve, and the roles of those found in other
people's."""

import re
from collections.abc import Mapping
from typing import TypedDict

SENTINELS = 32  # 15% of 512 tokens in spans of 3 are 26 spans (arXiv:1910.10683, section 3.1.4)
RESERVED = ("<pad>", "<bos>", "<eos>", "<mask>", *(f"<extra_{n}>" for n in range(SENTINELS)))

# Most telling name first: Gemma's vocabulary has "<s>" and "</s>" too, as HTML.
_NAMES = {
    "bos": (
        "<bos>",
        "<|begin_of_text|>",
        "<s>",
        "[CLS]",
        "<|startoftext|>",
        "<｜begin▁of▁sentence｜>",
    ),
    "eos": ("<eos>", "<|end_of_text|>", "<|endoftext|>", "</s>", "[SEP]", "<｜end▁of▁sentence｜>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"),
    "mask": ("<mask>", "[MASK]", "<|mask|>"),
}
_SENTINEL = re.compile(r"<extra_(?:id_)?(\d+)>")


class Roles(TypedDict):
    """The fields of a tokenizer that name special tokens."""

    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]


def find_roles(special: Mapping[str, int], named: Mapping[str, str | None]) -> Roles:
    """Roles of the special tokens (string -> id): as `named` (role -> string) where it speaks, else
    by usual names."""
    found = {}
    for role, names in _NAMES.items():
        candidates = (named[role],) if role in named else names
        found[f"{role}_id"] = next((special[name] for name in candidates if name in special), None)
    sentinels = {
        int(match[1]): special[name] for name in special if (match := _SENTINEL.fullmatch(name))
    }
    return Roles(**found, sentinel_ids=tuple(sentinels[number] for number in sorted(sentinels)))
