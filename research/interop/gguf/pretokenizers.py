"""How text is split before byte-level BPE merges it: llama.cpp's names (`tokenizer.ggml.pre`) and
the parts of a tokenizer.json that do the same.

Names and regular expressions are those of llama.cpp's src/llama-vocab.cpp; normalizers are those of
the tokenizer.json that each model was published with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.data.tokenizers.tokenizer import UnknownTokenizer

# GPT-2's split, and the one that LLaMA 3 and Qwen 2 derive from it with digits by threes and by
# ones.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3, _QWEN2 = _LATER.replace("DIGITS", r"\p{N}{1,3}"), _LATER.replace("DIGITS", r"\p{N}")


@dataclass(frozen=True)
class Pre:
    """One way of splitting text.

    `splits`: regular expressions, applied one after the other to the pieces of the last.
    `ignore_merges`: a piece that is a token as a whole is taken without merging. `normalizer`: a
    Unicode form, such as "NFC". `add_bos`: the default of add_bos_token.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    normalizer: str | None = None
    add_bos: bool = False


# Models came with names of their own for the same splits; files are written under the first.
PRE = {
    "gpt-2": Pre((_GPT2,)),
    "phi-2": Pre((_GPT2,)),
    "smollm": Pre((r"\p{N}", _GPT2)),
    "starcoder": Pre((r"\p{N}", _GPT2)),
    "refact": Pre((r"\p{N}", _GPT2)),
    "llama-bpe": Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama3": Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama-v3": Pre((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": Pre((_LLAMA3,)),
    "smaug-bpe": Pre((_LLAMA3,)),
    "qwen2": Pre((_QWEN2,), normalizer="NFC"),
    "deepseek-r1-qwen": Pre((_QWEN2,), normalizer="NFC"),
    # What llama.cpp does where a file does not say; no published tokenizer.json is like it.
    "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def find(name: str) -> Pre:
    """The splitting that llama.cpp calls `name`. ValueError, which lists the names, for another."""
    if name not in PRE:
        raise UnknownTokenizer(
            f"tokenizer.ggml.pre is {name!r:.40}, which is not known; wanted one of "
            f"{', '.join(PRE)}"
        )
    return PRE[name]


def parts(pre: Pre) -> dict[str, Any]:
    """`normalizer` and `pre_tokenizer` of a tokenizer.json for one way of splitting, spelt as the
    models' own files spell them, so that `recognise` and other programs know them."""
    # GPT-2's expression is built into the ByteLevel step, and single digits have a step of their
    # own.
    *first, last = pre.splits
    steps = [
        {"type": "Digits", "individual_digits": True} if split == r"\p{N}" else _split(split)
        for split in (first if last == _GPT2 else pre.splits)
    ]
    steps.append(byte_level(use_regex=last == _GPT2))
    return {
        "normalizer": {"type": pre.normalizer} if pre.normalizer else None,
        "pre_tokenizer": steps[0]
        if len(steps) == 1
        else {"type": "Sequence", "pretokenizers": steps},
    }


def byte_level(use_regex: bool) -> dict[str, Any]:
    """The step of a tokenizer.json that spells bytes as printable characters; with `use_regex` it
    first splits as GPT-2 does."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def recognise(spec: Mapping[str, Any]) -> str:
    """llama.cpp's name for the splitting of a tokenizer.json. ValueError, one line, for a splitting
    that llama.cpp does not have: it would encode text otherwise."""
    splits = _splits(spec.get("pre_tokenizer"))
    ignore_merges = bool(spec["model"].get("ignore_merges"))
    normalizer = _normalizer(spec.get("normalizer"))
    for name, pre in PRE.items():
        if (pre.splits, pre.ignore_merges, pre.normalizer) == (splits, ignore_merges, normalizer):
            return name
    described = f"splits {list(splits)}, ignore_merges {ignore_merges}, normalizer {normalizer}"
    raise ValueError(
        f"llama.cpp has no rule that cuts text as this tokenizer does ({described:.240}); wanted "
        "that of one of "
        f"{', '.join(PRE)}"
    )


def _splits(step: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The regular expressions of a pre-tokenizer, in the order in which they split."""
    step = step or {}
    kind = step.get("type")
    if kind == "Sequence":
        return tuple(split for part in step["pretokenizers"] for split in _splits(part))
    # A space before the text is not part of any of llama.cpp's rules.
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return (_GPT2,) if step.get("use_regex", True) else ()
    if kind == "Digits" and step.get("individual_digits"):
        return (r"\p{N}",)
    if (
        kind == "Split"
        and step.get("behavior") == "Isolated"
        and not step.get("invert")
        and "Regex" in step["pattern"]
    ):
        return (step["pattern"]["Regex"],)
    raise ValueError(f"llama.cpp has no rule for the pre-tokenizer {str(dict(step))[:160]}")


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _normalizer(step: Mapping[str, Any] | None) -> str | None:
    # An empty sequence, which some published files have, does nothing.
    if step and step.get("type") == "Sequence" and not step.get("normalizers"):
        return None
    return str(step.get("type")) if step else None
