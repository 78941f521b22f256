"""The vocabulary in a tokenizer's files, tokenizer.json or sentencepiece's tokenizer.model, with
the types that GGUF gives its tokens.
"""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tokenizers

from research.data.tokenizers import protobuf, sentencepiece
from research.data.tokenizers.side_files import ADDED, CONFIG, SPECIAL_MAP, SideFiles, resolve
from research.interop.gguf import pretokenizers as gguf_pre
from research.interop.gguf import unigram, wordpiece
from research.interop.gguf.scores import NORMAL, scores_from_merges

# Types of tokens as ggml's docs/gguf.md numbers them; 1 is NORMAL, in `scores`.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
FILE, TEMPLATE = "tokenizer.json", "chat_template.jinja"
SPACE = "▁"  # U+2581, how sentencepiece's pieces spell a space
# Roles by Hugging Face's names, with GGUF's; "seperator" is how GGUF spells it.
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "mask": "mask",
    "sep": "seperator",
}
# What a masked-LM head fills. It takes the blank before it, which matters in no text but one that
# spells the token out.
MASKS = ("<mask>", "[MASK]")
# How sentencepiece names the tokens of single bytes, which spell what the vocabulary lacks.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and their types by id, the unknown token, and in `extra` the keys that only this kind
    of vocabulary has, without "tokenizer.ggml."."""

    tokens: list[str]
    types: list[int]
    unk: str | None
    extra: dict[str, Any] = field(repr=False)


def read_vocabulary(files: Mapping[str, bytes]) -> tuple[dict[str, Any], Vocabulary]:
    """(tokenizer.json, vocabulary) of the files; the first is {} where there is none, and preferred
    to a tokenizer.model where there are both."""
    if FILE in files:
        spec = parse_object(files, FILE)
        try:
            tokenizers.Tokenizer.from_str(files[FILE].decode())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"not a tokenizer.json of the `tokenizers` library ({error})"
            ) from None
        return spec, _from_json(spec)
    if sentencepiece.FILE in files:
        return {}, _with_added(_from_model(files[sentencepiece.FILE]), read_side(files))
    raise ValueError(
        f"there is no {FILE} or {sentencepiece.FILE} among {sorted(files)}; a GGUF file needs one"
    )


def _from_json(spec: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a tokenizer.json. ValueError for a WordPiece that is not BERT's, a Unigram
    that is not sentencepiece's, and BPE that is neither byte-level nor falls back on bytes."""
    model = spec["model"]
    if model.get("type") == "WordPiece":
        tokens, types = _by_id(spec)
        extra = wordpiece.to_gguf(spec, tokens)
        return Vocabulary(tokens, types, model.get("unk_token"), extra)
    if model.get("type") == "Unigram":
        return _unigram(spec)
    if (
        model.get("type", "BPE") != "BPE"
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        kind = model.get("type", "BPE with affixes")
        raise ValueError(f"a GGUF file takes byte-level or sentencepiece BPE, not {kind}")
    # Anywhere in the nested steps: it may stand alone or inside a Sequence.
    byte_level = '"ByteLevel"' in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    if not byte_level and not model.get("byte_fallback"):
        raise ValueError(
            "this BPE tokenizer falls back on no bytes; a GGUF file takes byte-level or "
            "sentencepiece BPE"
        )
    tokens, types = _by_id(spec)
    # Older releases of the library wrote a merge as one string, "a b", newer ones as a list.
    pairs = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]
    ]
    if byte_level:
        extra = {
            "pre": gguf_pre.recognise(spec),
            "merges": [" ".join(pair) for pair in pairs],
            "add_space_prefix": False,
        }
        return Vocabulary(tokens, types, None, extra)
    # A tokenizer.json has no types; sentencepiece's are told by the tokens' names.
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
    return Vocabulary(_with_spaces(tokens, types), types, unk, extra)


def _unigram(spec: Mapping[str, Any]) -> Vocabulary:
    model = spec["model"]
    extra = unigram.to_gguf(spec)
    vocab = {token: n for n, (token, _) in enumerate(model["vocab"])}
    tokens, types = _by_id({**spec, "model": {"vocab": vocab}})
    unknown = model.get("unk_id")
    if type(unknown) is not int:
        raise ValueError("llama.cpp's Unigram has an unknown token, and this tokenizer none")
    types[unknown] = UNKNOWN
    # Tokens that were added behind the pieces; they are found before anything is scored.
    extra["scores"] = np.pad(extra["scores"], (0, len(tokens) - len(extra["scores"])))
    return Vocabulary(tokens, types, tokens[unknown], extra)


def _by_id(spec: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """(tokens, types) of a tokenizer.json, each by id; ids that are left out get unused tokens.
    ValueError for an added token, but for a mask, that swallows the blanks beside it."""
    model = spec["model"]
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    for token in added.values():
        blanks = token.get("lstrip") or token.get("rstrip") or token.get("single_word")
        if blanks and token["content"] not in MASKS:
            raise ValueError(
                f"token {token['content']!r:.60} takes the blanks beside it, which a GGUF file "
                "cannot say"
            )
    # Added tokens win: a file may list one of them in its vocabulary too.
    by_id = {n: token for token, n in model["vocab"].items()} | {
        n: token["content"] for n, token in added.items()
    }
    tokens = [by_id.get(n, f"[PAD{n}]") for n in range(max(by_id) + 1)]
    # An id that is in neither list is a hole in the vocabulary.
    types = [UNUSED] * len(tokens)
    for n in by_id:
        types[n] = NORMAL
    for n, token in added.items():
        # Control tokens are not printed by llama.cpp, user-defined ones are ordinary text.
        types[n] = CONTROL if token["special"] else USER_DEFINED
    return tokens, types


def _dummy_prefix(spec: Mapping[str, Any]) -> bool:
    """True if sentencepiece's space goes before the text. ValueError for normalizers and
    pre-tokenizers that do anything else than sentencepiece does."""
    # The steps are compared whole: three spellings are known, the two normalizers of transformers 4
    # (with and without the space) and the Metaspace step of transformers 5.
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}
    normalizer, step = spec.get("normalizer"), spec.get("pre_tokenizer") or {}
    # Gemma's file splits at spaces too, but its normalizer has replaced them all by then.
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


def _from_model(content: bytes) -> Vocabulary:
    """The vocabulary of a sentencepiece tokenizer.model. ValueError for a model that is not BPE
    with bytes, or that changes the text beyond its spaces."""
    sentencepiece.load(content)  # refuses a damaged file with a line of its own
    pieces, trainer, normalizer = [], {}, {}
    # Repeated messages of one number add up, as protobuf merges them.
    for number, value in protobuf.fields(content):
        if number == 1:
            pieces.append(dict(protobuf.fields(value)))
        elif number == 2:
            trainer |= dict(protobuf.fields(value))
        elif number == 3:
            normalizer |= dict(protobuf.fields(value))
    # Field numbers and defaults of sentencepiece_model.proto: ModelProto has pieces = 1,
    # trainer_spec = 2 and normalizer_spec = 3. llama.cpp assumes the settings wanted below.
    settings = {
        "model_type": trainer.get(3, 1) == 2 and "bpe",
        "byte_fallback": bool(trainer.get(35, 0)),
        "whitespace as suffix": bool(trainer.get(24, 0)),
        "normalization": bool(normalizer.get(2, b"")),
        "extra whitespace removed": bool(normalizer.get(4, 1)),
        "spaces escaped": bool(normalizer.get(5, 1)),
    }
    wanted = dict(zip(settings, ("bpe", True, False, False, False, True)))
    for key, value in wanted.items():
        if settings[key] != value:
            raise ValueError(
                f"this sentencepiece model has {key} {settings[key]}, where a GGUF file wants "
                f"{value}"
            )
    # A piece is its text (1), its score (2), a float, and its type (3), which ggml numbers alike.
    tokens = [piece[1].decode() for piece in pieces]
    types = [piece.get(3, NORMAL) for piece in pieces]
    scores = [struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0 for piece in pieces]
    extra = {
        "pre": "default",
        "scores": np.array(scores, np.float32),
        "add_space_prefix": bool(normalizer.get(3, 1)),
    }
    return Vocabulary(_with_spaces(tokens, types), types, tokens[types.index(UNKNOWN)], extra)


def read_side(files: Mapping[str, bytes]) -> SideFiles:
    """The files beside a vocabulary, resolved as transformers does."""
    values = [
        parse_object(files, name) if name in files else {} for name in (CONFIG, SPECIAL_MAP, ADDED)
    ]
    return resolve(*values)


def _with_added(vocabulary: Vocabulary, side: SideFiles) -> Vocabulary:
    """The vocabulary of a tokenizer.model with the tokens that files beside it add."""
    count = len(vocabulary.tokens)
    added = {n: token for n, token in side.added.items() if n >= count}
    if not added:
        return vocabulary
    ids = range(count, max(added) + 1)
    tokens = [added[n]["content"] if n in added else f"[PAD{n}]" for n in ids]
    kinds = [UNUSED] * len(ids)
    for n, token in added.items():
        kinds[n - count] = CONTROL if token["special"] else USER_DEFINED
    # Found before anything is merged, so the score has no say; llama.cpp's script writes -1000 too.
    scores = np.pad(vocabulary.extra["scores"], (0, len(ids)), constant_values=-1000.0)
    extra = {**vocabulary.extra, "scores": scores}
    return Vocabulary(vocabulary.tokens + tokens, vocabulary.types + kinds, vocabulary.unk, extra)


def _with_spaces(tokens: list[str], types: list[int]) -> list[str]:
    """The tokens, with U+2581 turned into spaces in those of type USER_DEFINED: llama.cpp looks for
    these in the text before it escapes its spaces."""
    return [
        token.replace(SPACE, " ") if kind == USER_DEFINED else token
        for token, kind in zip(tokens, types)
    ]


def parse_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in one of the files. ValueError for anything else in it."""
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error})") from None
    if not isinstance(value, dict) or (name == FILE and not isinstance(value.get("model"), dict)):
        raise ValueError(f"{name} is not what its name says; restore it from the source")
    return value
