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

# Tekken's (Mistral Nemo) and GPT-4o's: words begin in upper case and go on in lower case.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _CASED.replace("END", "").replace("DIGITS", r"\p{N}")
_GPT4O = _CASED.replace("END", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
# The model's own file has the characters themselves here.
_DEEPSEEK_V3 = tuple(split.replace(r"\r\n", "\r\n") for split in _DEEPSEEK_V3)
# The letters with a case that DeepSeek's first tokenizer lists beyond ASCII.
_DEEPSEEK_LETTERS = (
    "µÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-"
    "ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_LLM = (
    "[\r\n]",
    rf"\s?[A-Za-z{_DEEPSEEK_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
)
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"


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


_BY_DIGIT, _LIKE_LLAMA3 = Pre((r"\p{N}", _GPT2)), Pre((_LLAMA3,), True, add_bos=True)


def _named(names: str, pre: Pre) -> dict[str, Pre]:
    return dict.fromkeys(names.split(), pre)


# Models came with names of their own for the same splits; files are written under the first.
PRE = {
    **_named("gpt-2 phi-2 olmo mpt jais trillion exaone4 gigachat a.x-4.0 mellum", Pre((_GPT2,))),
    # As Qwen's, it normalizes where llama.cpp does not.
    **_named("modern-bert", Pre((_GPT2,), normalizer="NFC")),
    **_named("smollm starcoder refact command-r codeshell exaone minerva-7b", _BY_DIGIT),
    **_named("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", _LIKE_LLAMA3),
    **_named("dbrx smaug-bpe chatglm-bpe glm4", Pre((_LLAMA3,))),
    **_named("qwen2 deepseek-r1-qwen megrez", Pre((_QWEN2,), normalizer="NFC")),
    # llama.cpp normalizes under none of its names, and says the same of these.
    **_named("hunyuan stablelm2 grok-2", Pre((_QWEN2,))),
    "tekken": Pre((_TEKKEN,), ignore_merges=True, add_bos=True),
    **_named("gpt-4o llama4", Pre((_GPT4O,))),
    "deepseek-llm": Pre(_DEEPSEEK_LLM),
    "deepseek-coder": Pre(_DEEPSEEK_CODER),
    **_named("deepseek-v3 hunyuan-dense", Pre(_DEEPSEEK_V3)),
    "falcon": Pre(_FALCON),
    **_named("bloom poro-chat gpt3-finnish", Pre((_BLOOM,))),
    "viking": Pre((_BLOOM, r"\p{N}")),
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
