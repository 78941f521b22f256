"""A tokenizer's files made into the metadata with which a GGUF file carries it, the inverse of
gguf_tokenizer."""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tokenizers

from research.data.tokenizers import sentencepiece
from research.data.tokenizers.special import find_roles
from research.interop.gguf import pretokenizers as gguf_pre
from research.interop.gguf.scores import NORMAL, scores_from_merges

# Token types, ggml's docs/gguf.md; the first is NORMAL.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
FILE, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
SPACE = "▁"  # U+2581, how sentencepiece's pieces spell a space
# Hugging Face's name of a role and GGUF's, "seperator" as it is spelt there.
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "mask": "mask",
    "sep": "seperator",
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class _Vocabulary:
    """Tokens and types by id; `extra` are the keys of one kind of vocabulary only, without their
    prefix."""

    tokens: list[str]
    types: list[int]
    unk: str | None
    extra: dict[str, Any] = field(repr=False)


def tokenizer_metadata(files: Mapping[str, bytes], vocab_size: int = 0) -> dict[str, Any]:
    """The tokenizer.* keys for a tokenizer.json (byte-level or sentencepiece BPE) or a
    sentencepiece tokenizer.model.

    A tokenizer_config.json and chat_template.jinja among the files have their say. `vocab_size` is
    the number of rows that the model has for tokens, where it has more than there are tokens; the
    rest become unused ones. ValueError, one line, for what llama.cpp could not encode alike.
    """
    config = _json(files, CONFIG) if CONFIG in files else {}
    spec, found = _read(files)
    tokens = found.tokens + [f"[PAD{n}]" for n in range(len(found.tokens), vocab_size)]
    types = found.types + [UNUSED] * (len(tokens) - len(found.types))
    if vocab_size and len(tokens) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokens)} tokens, but the model only {vocab_size} rows for them"
        )
    metadata = {
        "model": "gpt2" if "merges" in found.extra else "llama",
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        **found.extra,
    }
    if "scores" in metadata:
        metadata["scores"] = np.pad(metadata["scores"], (0, len(tokens) - len(found.tokens)))
    roles = _roles(config, found)
    for role, token_id in roles.items():
        metadata[f"{ROLES[role]}_token_id"] = token_id
    for role in ("bos", "eos"):
        added = _added_around(role, tokens[roles[role]] if role in roles else None, config, spec)
        if added is not None:
            metadata[f"add_{role}_token"] = added
    template = _template(files, config)
    return {
        **{f"tokenizer.ggml.{key}": value for key, value in metadata.items()},
        **({"tokenizer.chat_template": template} if template else {}),
    }


def _read(files: Mapping[str, bytes]) -> tuple[dict[str, Any], _Vocabulary]:
    """The tokenizer.json, {} where there is none, and the vocabulary of the files."""
    if FILE in files:
        spec = _json(files, FILE)
        try:
            tokenizers.Tokenizer.from_str(files[FILE].decode())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"not a tokenizer.json of the `tokenizers` library ({error})"
            ) from None
        return spec, _from_json(spec)
    if sentencepiece.FILE in files:
        return {}, _from_model(files[sentencepiece.FILE])
    raise ValueError(
        f"there is no {FILE} or {sentencepiece.FILE} among {sorted(files)}; a GGUF file needs one"
    )


def _from_json(spec: Mapping[str, Any]) -> _Vocabulary:
    model = spec["model"]
    if (
        model.get("type", "BPE") != "BPE"
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        kind = model.get("type", "BPE with affixes")
        raise ValueError(f"a GGUF file takes byte-level or sentencepiece BPE, not {kind}")
    byte_level = '"ByteLevel"' in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    if not byte_level and not model.get("byte_fallback"):
        raise ValueError(
            "this BPE tokenizer falls back on no bytes; a GGUF file takes byte-level or "
            "sentencepiece BPE"
        )
    tokens, types = _by_id(spec)
    pairs = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]
    ]
    if byte_level:
        extra = {
            "pre": gguf_pre.recognise(spec),
            "merges": [" ".join(pair) for pair in pairs],
            "add_space_prefix": False,
        }
        return _Vocabulary(tokens, types, None, extra)
    unk = model.get("unk_token")
    for n, token in enumerate(tokens):
        if types[n] == NORMAL and _BYTE.fullmatch(token):
            types[n] = BYTE
        if token == unk:
            types[n] = UNKNOWN
    extra = {
        "pre": "default",
        "scores": scores_from_merges(tokens, types, pairs),
        "add_space_prefix": _dummy_prefix(spec),
    }
    return _Vocabulary(_with_spaces(tokens, types), types, unk, extra)


def _by_id(spec: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens and their types by id. ValueError for a token that takes the blanks beside it."""
    model = spec["model"]
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    for token in added.values():
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise ValueError(
                f"token {token['content']!r:.60} takes the blanks beside it, which a GGUF file "
                "cannot say"
            )
    by_id = {n: token for token, n in model["vocab"].items()} | {
        n: token["content"] for n, token in added.items()
    }
    tokens = [by_id.get(n, f"[PAD{n}]") for n in range(max(by_id) + 1)]
    types = [UNUSED] * len(tokens)
    for n in by_id:
        types[n] = NORMAL
    for n, token in added.items():
        types[n] = CONTROL if token["special"] else USER_DEFINED
    return tokens, types


def _dummy_prefix(spec: Mapping[str, Any]) -> bool:
    """Whether a space goes before the text; ValueError for steps other than sentencepiece's."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
    normalizer, step = spec.get("normalizer"), spec.get("pre_tokenizer") or {}
    # Gemma's file splits at spaces, of which its normalizer leaves none.
    if step.get("type") == "Split" and step.get("pattern") == {"String": " "}:
        step = {}
    if not step and normalizer in (replace, prepend):
        return normalizer == prepend
    scheme = step.get("prepend_scheme")
    if (
        not normalizer
        and step.get("replacement") == SPACE
        and step.get("split") is False
        and scheme
    ):
        # transformers 5 puts none before a space or after a special token; sentencepiece and
        # llama.cpp always do.
        return scheme != "never"
    raise ValueError(
        f"a GGUF file has no words for these steps: {json.dumps([normalizer, step])[:200]}"
    )


def _from_model(content: bytes) -> _Vocabulary:
    sentencepiece.load(content)  # for its errors
    pieces, trainer, normalizer = [], {}, {}
    for number, value in sentencepiece.fields(content):
        if number == 1:
            pieces.append(dict(sentencepiece.fields(value)))
        elif number == 2:
            trainer |= dict(sentencepiece.fields(value))
        elif number == 3:
            normalizer |= dict(sentencepiece.fields(value))
    # Field numbers and defaults of sentencepiece_model.proto.
    found = {
        "model_type": trainer.get(3, 1) == 2 and "bpe",
        "byte_fallback": bool(trainer.get(35, 0)),
        "whitespace as suffix": bool(trainer.get(24, 0)),
        "normalization": bool(normalizer.get(2, b"")),
        "extra whitespace removed": bool(normalizer.get(4, 1)),
        "spaces escaped": bool(normalizer.get(5, 1)),
    }
    wanted = dict(zip(found, ("bpe", True, False, False, False, True)))
    for key, value in wanted.items():
        if found[key] != value:
            raise ValueError(
                f"this sentencepiece model has {key} {found[key]}, where a GGUF file wants {value}"
            )
    tokens = [piece[1].decode() for piece in pieces]
    types = [piece.get(3, NORMAL) for piece in pieces]
    scores = [struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0 for piece in pieces]
    extra = {
        "pre": "default",
        "scores": np.array(scores, np.float32),
        "add_space_prefix": bool(normalizer.get(3, 1)),
    }
    return _Vocabulary(_with_spaces(tokens, types), types, tokens[types.index(UNKNOWN)], extra)


def _with_spaces(tokens: list[str], types: list[int]) -> list[str]:
    """The tokens that are looked for in the text itself, with the spaces that are there."""
    return [
        token.replace(SPACE, " ") if kind == USER_DEFINED else token
        for token, kind in zip(tokens, types)
    ]


def _roles(config: Mapping[str, Any], found: _Vocabulary) -> dict[str, int]:
    named = {role: config[f"{role}_token"] for role in ROLES if f"{role}_token" in config}
    named = {
        role: token["content"] if isinstance(token, dict) else token
        for role, token in named.items()
    }
    ids = {token: n for n, token in enumerate(found.tokens)}
    special = {
        found.tokens[n]: n
        for n, kind in enumerate(found.types)
        if kind not in (NORMAL, BYTE, UNUSED)
    }
    usual = find_roles(special, {role: token for role, token in named.items() if token})
    roles = {
        role: usual[f"{role}_id"]
        for role in ("bos", "eos", "pad", "mask")
        if named.get(role, "") is not None
    }
    for role in ("unk", "sep"):
        roles[role] = ids.get(named.get(role) or (found.unk if role == "unk" else None))
    return {role: roles[role] for role in ROLES if roles.get(role) is not None}


def _added_around(
    role: str, token: str | None, config: Mapping[str, Any], spec: Mapping[str, Any]
) -> bool | None:
    """Whether encoding puts the token of the role around a text; None where nothing says."""
    if isinstance(config.get(f"add_{role}_token"), bool):
        return config[f"add_{role}_token"] and token is not None
    if not spec:
        return None
    step = spec.get("post_processor") or {}
    for part in step.get("processors", [step]):
        if part.get("type") == "TemplateProcessing":
            edge = part["single"][0 if role == "bos" else -1]
            return token is not None and edge.get("SpecialToken", {}).get("id") == token
    return False


def _template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if TEMPLATE in files:
        return files[TEMPLATE].decode()
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next(
            (one.get("template") for one in template if one.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error})") from None
    if not isinstance(value, dict) or (name == FILE and not isinstance(value.get("model"), dict)):
        raise ValueError(f"{name} is not what its name says; restore it from the source")
    return value
