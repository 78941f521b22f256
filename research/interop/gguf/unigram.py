"""sentencepiece's Unigram as GGUF has it, the tokenizer of XLM-R and T5: the likeliest cut of a
text by the scores of pieces, after a map of characters and with one space between words.

llama.cpp's file has the map as bytes, `precompiled_charsmap`, as a tokenizer.json has it in base64.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MODEL = "t5"  # llama.cpp's name of this kind of vocabulary
# Ids and marks that llama.cpp takes where a file does not name them, those of T5.
IDS = {"eos": 1, "unk": 2, "pad": 0}
ADDS = {"bos": False, "eos": True}
_SPACE, _MAP = "▁", "precompiled_charsmap"


def to_gguf(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that only such a vocabulary has. ValueError for one that falls back on bytes, and
    for steps that do anything else than sentencepiece does."""
    model = spec["model"]
    if model.get("byte_fallback"):
        raise ValueError("llama.cpp's Unigram has no bytes to fall back on; use --to=hf")
    charsmap, prefix = _charsmap(spec), _prefix(spec.get("pre_tokenizer"))
    keys = {
        "model": MODEL,
        "pre": "default",
        "scores": np.array([score for _, score in model["vocab"]], np.float32),
        "add_space_prefix": prefix,
        "remove_extra_whitespaces": True,
    }
    return keys | ({_MAP: np.frombuffer(charsmap, np.uint8)} if charsmap else {})


def from_gguf(
    values: Mapping[str, Any], tokens: Sequence[str], scores: Sequence[float], unknown: int
) -> dict[str, Any]:
    """`normalizer`, `pre_tokenizer`, `decoder` and `model` of a tokenizer.json; `values` are the
    keys without "tokenizer.ggml.". ValueError for runs of spaces that are kept."""
    if not values.get("remove_extra_whitespaces", False):
        raise ValueError(
            "tokenizer.ggml.remove_extra_whitespaces is False; only True is supported for t5"
        )
    prefix = values.get("add_space_prefix", True)
    charsmap = values.get(_MAP, b"")
    charsmap = bytes(charsmap if isinstance(charsmap, bytes) else np.asarray(charsmap, np.uint8))
    encoded = base64.b64encode(charsmap).decode()
    space = {
        "type": "Metaspace",
        "replacement": _SPACE,
        "prepend_scheme": "always" if prefix else "never",
        "split": True,
    }
    words = [{"type": "WhitespaceSplit"}, space]
    return {
        "normalizer": {"type": "Precompiled", _MAP: encoded} if charsmap else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": words},
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [list(pair) for pair in zip(tokens, scores)],
            "byte_fallback": False,
        },
    }


def _charsmap(spec: Mapping[str, Any]) -> bytes:
    """The map of characters of a tokenizer.json, b"" for none. What else normalizes may take away
    spaces alone, as cutting at them does too."""
    step = spec.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = step["normalizers"] if step.get("type") == "Sequence" else [step]
    maps = [one for one in steps if one.get("type") == "Precompiled"]
    if len(maps) > 1 or not all(_takes_spaces(one) for one in steps if one not in maps):
        raise ValueError(_refusal(step))
    try:
        return base64.b64decode(maps[0][_MAP] or "", validate=True) if maps else b""
    except (binascii.Error, TypeError):
        raise ValueError(f"the tokenizer's {_MAP} is not base64; fetch it again") from None


def _takes_spaces(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Strip":
        return True
    runs = step.get("pattern") == {"Regex": " {2,}"} and step.get("content") in (" ", _SPACE)
    return step.get("type") == "Replace" and runs


def _prefix(step: Mapping[str, Any] | None) -> bool:
    """True if words begin with sentencepiece's space. ValueError for another way to cut a text."""
    steps = (step or {}).get("pretokenizers") or [step or {}]
    *before, last = steps
    scheme = last.get("prepend_scheme") or ("always" if last.get("add_prefix_space") else "never")
    splits = before == [{"type": "WhitespaceSplit"}] and scheme in ("always", "never")
    whole = not before and scheme == "always"
    known = last.get("type") == "Metaspace" and last.get("replacement") == _SPACE
    if not known or not (splits or whole) or last.get("split") is False:
        raise ValueError(_refusal(step))
    return scheme == "always"


def _refusal(step: Any) -> str:
    return f"a GGUF file has no words for this step of Unigram: {json.dumps(step)[:200]}"
