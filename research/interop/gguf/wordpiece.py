"""BERT's WordPiece as llama.cpp has it: a vocabulary where the beginning of a word is marked, and
not its continuation.

A tokenizer.json says "play" and "##ing", a GGUF file "▁play" and "ing". llama.cpp lower-cases the
text and takes its accents off, as the uncased models do, whatever the file says.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_BEGIN, _CONTINUED = "▁", "##"
_BRACKETED = re.compile(r"\[.*\]", re.DOTALL)  # special and unused tokens stay as they are
# What `BertTokenizer` has, and the only steps that llama.cpp knows. An absent `strip_accents`
# follows `lowercase`.
_NORMALIZER = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
_PRE_TOKENIZER = {"type": "BertPreTokenizer"}
# Ids that llama.cpp takes where a file does not name them, those of BERT's own vocabulary.
IDS = {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103}


def to_gguf(spec: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """The keys of such a vocabulary, the marked tokens among them. ValueError for a tokenizer that
    cuts or normalizes texts otherwise, such as a cased one."""
    normalizer = {**_NORMALIZER, **(spec.get("normalizer") or {"lowercase": False})}
    normalizer["strip_accents"] = normalizer["strip_accents"] or None
    model = spec["model"]
    prefix = model.get("continuing_subword_prefix", _CONTINUED)
    if (normalizer, spec.get("pre_tokenizer"), prefix) != (_NORMALIZER, _PRE_TOKENIZER, _CONTINUED):
        raise ValueError(
            "llama.cpp's WordPiece lower-cases a text and takes off its accents, and this "
            f"tokenizer has {str(spec.get('normalizer'))[:160]}; use --to=hf"
        )
    return {"model": "bert", "pre": "default", "tokens": [_marked(token) for token in tokens]}


def from_gguf(tokens: Sequence[str], unknown: str | None) -> dict[str, Any]:
    """`normalizer`, `pre_tokenizer`, `decoder` and `model` of a tokenizer.json with `plain`
    tokens."""
    vocab = {token: n for n, token in enumerate(tokens)}
    model = {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": _CONTINUED,
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    decoder = {"type": "WordPiece", "prefix": _CONTINUED, "cleanup": True}
    return dict(normalizer=_NORMALIZER, pre_tokenizer=_PRE_TOKENIZER, decoder=decoder, model=model)


def plain(token: str) -> str:
    """A token of a GGUF file as a tokenizer.json spells it."""
    if token.startswith(_BEGIN):
        return token.removeprefix(_BEGIN)
    return token if _BRACKETED.fullmatch(token) else _CONTINUED + token


def _marked(token: str) -> str:
    if _BRACKETED.fullmatch(token):
        return token
    if token.startswith(_CONTINUED):
        return token.removeprefix(_CONTINUED)
    return _BEGIN + token
