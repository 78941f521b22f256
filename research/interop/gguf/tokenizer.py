"""From the tokenizer in a GGUF file's metadata to the files of a Hugging Face folder.

There are four kinds of vocabulary: "gpt2", byte-level BPE with a list of merges, "llama",
sentencepiece BPE with scores, "bert", WordPiece, and "t5", sentencepiece's Unigram. The resulting
files encode as llama.cpp does, with two exceptions. Qwen's own tokenizer.json normalizes text to
NFC, llama.cpp does not. And where sentencepiece puts a space before a text, llama.cpp and
transformers' converted files put one after each special token too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from research.data.tokenizers.side_files import CONFIG
from research.data.tokenizers.template_files import FOLDER
from research.data.tokenizers.tokenizer import UnknownTokenizer
from research.interop.gguf import pretokenizers as gguf_pre
from research.interop.gguf import unigram, wordpiece
from research.interop.gguf.marks import marks_around
from research.interop.gguf.scores import NORMAL, merges_from_scores
from research.interop.gguf.vocabulary import (
    CONTROL,
    FILE,
    ROLES,
    SPACE,
    TEMPLATE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

_KEY = "tokenizer.ggml."
# Characters of the longest token that is accepted. Finding the merges of a piece takes the square
# of its length; sentencepiece's own longest pieces are 64.
_LONGEST = 256
# Where a "llama" vocabulary names no special tokens, llama.cpp takes these ids, those of LLaMA's.
_LLAMA_IDS = {"bos": 1, "eos": 2, "unk": 0}
# By the kind of vocabulary.
_USUAL = {"llama": _LLAMA_IDS, "bert": wordpiece.IDS, unigram.MODEL: unigram.IDS}


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The contents of tokenizer.json, tokenizer_config.json and, if the file has a chat template,
    chat_template.jinja, by file name.

    `metadata` is that of an open `Gguf`. ValueError, one line, for another kind of vocabulary, an
    unknown way of splitting text, and arrays whose lengths do not fit together.
    """
    model = _get(metadata, "model", str)
    tokens, types = _vocabulary(metadata)
    # Byte-level vocabularies have no usual ids: a role that the file does not name is not there.
    usual = _USUAL.get(model, {})
    if model in ("bert", unigram.MODEL):
        usual = {role: n for role, n in usual.items() if n < len(tokens)}
    if model == "bert":
        tokens = [wordpiece.plain(token) for token in tokens]
    roles = _roles(metadata, tokens, usual)
    if model == "gpt2":
        pre = gguf_pre.find(_get(metadata, "pre", str, "default"))
        spec, add_bos = _byte_level(tokens, _strings(metadata, "merges"), pre), pre.add_bos
    elif model == "llama":
        spec, add_bos = _sentencepiece(metadata, tokens, types, roles), "bos" in roles
    elif model == "bert":
        spec, add_bos = _wordpiece(tokens, roles), True
        roles = {**roles, "eos": roles["sep"]} if "sep" in roles else roles
    elif model == unigram.MODEL:
        spec, add_bos = _unigram(metadata, tokens, roles), unigram.ADDS["bos"]
    else:
        raise UnknownTokenizer(
            f"tokenizer.ggml.model is {model!r:.40}; wanted 'gpt2', 'llama', 'bert' or 't5'"
        )
    add_eos = model == unigram.MODEL and unigram.ADDS["eos"]
    adds = {
        "bos": _get(metadata, "add_bos_token", bool, add_bos),
        "eos": _get(metadata, "add_eos_token", bool, add_eos),
    }
    # llama.cpp asks for neither under WordPiece.
    adds = {"bos": True, "eos": True} if model == "bert" else adds
    # The unknown token is never looked for in a text, it is what is left; so it is no added token.
    spec["added_tokens"] = _added(tokens, types, {roles[role] for role in roles if role != "unk"})
    spec["post_processor"] = marks_around(tokens, roles, adds)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": tokens[token_id] for role, token_id in roles.items()},
        **{f"add_{role}_token": added for role, added in adds.items()},
    }
    # A class that takes everything from tokenizer.json and adds no rules of its own.
    files = {FILE: _dump(spec), CONFIG: _dump(config), **_templates(metadata)}
    _check_loads(files[FILE])
    return files


def _check_loads(content: bytes) -> None:
    # Whether merges and vocabulary fit, the library itself says best.
    try:
        tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"the file's vocabulary makes no tokenizer ({' '.join(str(error).split())[:200]})"
        ) from None


def _templates(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    files = {}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        files[TEMPLATE] = template.encode()
    for key, source in metadata.items():
        name = key.removeprefix("tokenizer.chat_template.")
        if name != key and name.isidentifier() and isinstance(source, str):
            files[f"{FOLDER}/{name}.jinja"] = source.encode()
    return files


def _byte_level(tokens: list[str], merges: Sequence[str], pre: gguf_pre.Pre) -> dict[str, Any]:
    # Byte-level tokens spell a space as another character, so a space can only separate.
    pairs = [merge.split(" ") for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise ValueError(
                f"tokenizer.ggml.merges has {' '.join(pair)!r:.60}, wanted two tokens and a space "
                "between"
            )
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre.ignore_merges,
        "vocab": {token: n for n, token in enumerate(tokens)},
        "merges": pairs,
    }
    return _spec(**gguf_pre.parts(pre), decoder=gguf_pre.byte_level(use_regex=True), model=model)


def _wordpiece(tokens: list[str], roles: Mapping[str, int]) -> dict[str, Any]:
    unknown = tokens[roles["unk"]] if "unk" in roles else "[UNK]"
    return _spec(**wordpiece.from_gguf(tokens, unknown))


def _unigram(
    metadata: Mapping[str, Any], tokens: list[str], roles: Mapping[str, int]
) -> dict[str, Any]:
    if "unk" not in roles:
        raise ValueError(f"{_KEY}unknown_token_id is missing; a t5 vocabulary has one")
    values = {key.removeprefix(_KEY): value for key, value in metadata.items()}
    scores = _numbers(metadata, "scores", tokens)
    return _spec(**unigram.from_gguf(values, tokens, scores, roles["unk"]))


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: Sequence[int], roles: Mapping[str, int]
) -> dict[str, Any]:
    scores = _numbers(metadata, "scores", tokens)
    # Control tokens, bytes and the rest never come out of a merge in sentencepiece.
    pieces = {
        token: score
        for token, score, kind in zip(tokens, scores, types)
        if kind in (NORMAL, UNUSED)
    }
    if (longest := max(map(len, pieces), default=0)) > _LONGEST:
        raise ValueError(
            f"tokenizer.ggml.tokens has one of {longest} characters, wanted at most {_LONGEST}"
        )
    # LLaMA's normalizer in transformers' converted files: a space before the text, then every space
    # as U+2581. The decoder undoes both.
    prefix = _get(metadata, "add_space_prefix", bool, True)
    normalizers = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": tokens[roles["unk"]] if "unk" in roles else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        # Bytes spell what the vocabulary lacks; a run of what even they lack is one unknown
        # token.
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {token: n for n, token in enumerate(tokens)},
        "merges": merges_from_scores(pieces),
    }
    return _spec(
        normalizer=normalizers[0]
        if len(normalizers) == 1
        else {"type": "Sequence", "normalizers": normalizers},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model=model,
    )


def _spec(**parts: Any) -> dict[str, Any]:
    """A tokenizer.json of these parts, with its keys in the order in which the library writes
    them."""
    first = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    model, decoder = parts.pop("model"), parts.pop("decoder")
    return {**first, **parts, "post_processor": None, "decoder": decoder, "model": model}


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """(tokens, types), each by id; all types are NORMAL in a file without types."""
    tokens = _strings(metadata, "tokens")
    if not tokens:
        raise ValueError(
            "the file has no tokenizer.ggml.tokens; name the tokenizer's own folder instead"
        )
    # A tokenizer.json maps tokens to ids, so two ids of one token cannot both be kept.
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))
        raise ValueError(f"tokenizer.ggml.tokens has {twice!r:.60} twice")
    named = f"{_KEY}token_type" in metadata
    return tokens, _numbers(metadata, "token_type", tokens) if named else [NORMAL] * len(tokens)


def _get(metadata: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = metadata.get(_KEY + name, default)
    if not isinstance(value, kind) and value is not default:
        raise ValueError(f"{_KEY}{name} is of type {type(value).__name__}, wanted {kind.__name__}")
    return value


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(_KEY + name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{_KEY}{name} is of type {type(value).__name__}, wanted strings")
    return value


def _numbers(metadata: Mapping[str, Any], name: str, tokens: list[str]) -> list[Any]:
    """An array of the metadata that has one number for each token, as a list."""
    value = np.asarray(metadata.get(_KEY + name, []))
    if value.shape != (len(tokens),) or value.dtype.kind not in "iuf":
        got = f"{value.dtype.name} {list(value.shape)}"
        raise ValueError(f"{_KEY}{name} is {got}, wanted a number for each of {len(tokens)} tokens")
    return value.tolist()


def _roles(
    metadata: Mapping[str, Any], tokens: list[str], usual: Mapping[str, int]
) -> dict[str, int]:
    """Ids of the special tokens by role; `usual` has those of a file that names none."""
    roles = {}
    for role, name in ROLES.items():
        token_id = _get(metadata, f"{name}_token_id", int, usual.get(role))
        if token_id is None:
            continue
        if not 0 <= token_id < len(tokens):
            raise ValueError(f"{_KEY}{name}_token_id is {token_id} of {len(tokens)} tokens")
        roles[role] = token_id
    return roles


def _added(tokens: list[str], types: Sequence[int], named: set[int]) -> list[dict[str, Any]]:
    """The `added_tokens` of a tokenizer.json, which are found in a text before it is split: those
    of a special type, and all that have a role."""
    # Found exactly as written: GGUF has no flags for blanks around a token or for normalized
    # text.
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": n, "content": token, **flags, "special": kind != USER_DEFINED or n in named}
        for n, (token, kind) in enumerate(zip(tokens, types))
        if (kind in (UNKNOWN, CONTROL, USER_DEFINED) or n in named) and token
    ]


def _dump(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
