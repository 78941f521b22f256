"""Special tokens: those that our own vocabularies reserve, and how the special tokens of other
vocabularies are recognised."""

import re
from collections.abc import Mapping
from typing import Any, TypedDict

# Ids are below this number. An id decides the size of tables, so a damaged one must not ask for all
# memory.
MOST = 2**24
SENTINELS = 32  # 15% of 512 tokens in spans of 3 are 26 spans (arXiv:1910.10683, section 3.1.4)
RESERVED = ("<pad>", "<bos>", "<eos>", "<mask>", *(f"<extra_{n}>" for n in range(SENTINELS)))
# Of texts with a gap (arXiv:2207.14255), by StarCoder's names; see `research.data.infill`.
GAPS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")

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


def refuse_far_ids(vocab: Mapping[str, int]) -> None:
    """ValueError for a vocabulary, tokens to ids, with an id of MOST or more. To be asked before
    the `tokenizers` library writes one out, for it visits every number up to the largest id."""
    if (largest := max(vocab.values(), default=0)) >= MOST:
        raise ValueError(f"a token has the id {largest:,}; wanted ids below {MOST:,}")


class Roles(TypedDict):
    """Ids of the special tokens of a vocabulary, None for those it lacks; `sentinel_ids` are
    T5's, in order."""

    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]


def find_roles(special: Mapping[str, int], named: Mapping[str, str | None]) -> Roles:
    """The ids of the special tokens by role.

    `special` maps strings to ids. `named` maps "bos", "eos", "pad" or "mask" to the string that
    the tokenizer's own configuration gives it, None for none; a role that it does not mention is
    looked for by its usual names.

    >>> find_roles({"<s>": 1, "</s>": 2}, {})["eos_id"]
    2
    """
    ids = {}
    for role, names in _NAMES.items():
        # A configuration that names a role decides it, also by naming none.
        candidates = (named[role],) if role in named else names
        ids[f"{role}_id"] = next((special[name] for name in candidates if name in special), None)
    # Sorted by their number: T5's vocabulary has them in falling order of id.
    sentinels = {
        int(match[1]): special[name] for name in special if (match := _SENTINEL.fullmatch(name))
    }
    return Roles(**ids, sentinel_ids=tuple(sentinels[number] for number in sorted(sentinels)))


def decoder_start(tokenizer: Any, start: str = "pad") -> int:
    """The id of the token that a decoder reads first, by `decoder_start` of its model: padding, as
    in T5, or the end of a text, which also stands for padding where a tokenizer has none."""
    ends = start == "end" or tokenizer.pad_id is None
    return tokenizer.eos_id if ends else tokenizer.pad_id
