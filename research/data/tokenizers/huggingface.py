"""Tokenizers in tokenizer.json, the format of the `tokenizers` library: any model can be loaded,
byte-level BPE can be trained."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from research.data.tokenizers.added import add_tokens
from research.data.tokenizers.side_files import CONFIG, SideFiles, spelt
from research.data.tokenizers.special import RESERVED, Roles, find_roles, refuse_far_ids
from research.data.tokenizers.tokenizer import Aligned, Tokenizer, begins_word

FILE = "tokenizer.json"
_ROLES = ("bos", "eos", "pad", "mask")
_SPLIT_SPECIAL = "split_special_tokens"  # of tokenizer_config.json: no text is a special token

# A line break goes with the punctuation before it and the indentation after it, all but the space
# that the next word keeps, so that a word has one spelling wherever it stands in a line. Against
# GPT-2's split, bytes per token on held-out Python source rise from 3.157 to 3.159, 3.578 to 3.659,
# 3.889 to 4.026 with 2048, 4096, 8192 tokens.
_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+(?:[\r\n]+(?:[ \t]+(?!\S))?)?"
    r"|\s*[\r\n]+(?:[ \t]+(?!\S))?"
    r"|[ \t]+(?!\S)|\s+"
)


def load(
    content: bytes, config: Mapping[str, Any], side: SideFiles | None = None, grow: bool = False
) -> Tokenizer:
    """The tokenizer of a tokenizer.json. `config` is the content of its tokenizer_config.json, {}
    without one. The tokens that the files beside it, `side`, add are added; with `grow` also those
    that get an id by being added, as transformers does.

    The special tokens for begin, end, padding and mask are those that `config` names, else those
    with a usual name such as "</s>". Truncation, padding, dropout and the post-processor are
    switched off: `encode` gives every token of the text and adds none. ValueError if the content
    is no tokenizer.json.
    """
    try:
        spec = json.loads(content)
        # Some files were saved in the middle of training, with settings that would cut or pad our
        # texts, or with BPE dropout, which makes ids random.
        spec |= {"truncation": None, "padding": None}
        spec["model"] |= {"dropout": None} if "dropout" in spec["model"] else {}
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"not a tokenizer.json of the `tokenizers` library ({error})") from None
    vocab = backend.get_vocab(with_added_tokens=True)
    refuse_far_ids(vocab)
    if side is not None and add_tokens(backend, side, config, grow=grow):
        spec = json.loads(backend.to_str())
        vocab = backend.get_vocab(with_added_tokens=True)
    roles = find_roles(_special(spec), named_roles(config))
    # The spellings of special tokens within a text are then text, as transformers reads them.
    split = config.get(_SPLIT_SPECIAL) is True
    backend.encode_special_tokens = split
    aligning = json.dumps(spec | {"post_processor": None})
    return Tokenizer(
        kind="huggingface",
        # Ids may have gaps, so the count of tokens can be below the largest id.
        vocab_size=max(vocab.values()) + 1,
        **roles,
        word_starts=_word_starts(spec, vocab),
        fingerprint=_fingerprint(spec, roles, split),
        files={FILE: dump(spec), CONFIG: dump(_config(roles, vocab, split))},
        encode_texts=functools.partial(_encode_texts, backend),
        decode_ids=functools.partial(backend.decode, skip_special_tokens=False),
        align_texts=functools.partial(_align_texts, aligning, split),
        separators=_separators(spec.get("post_processor") or {}),
    )


def _separators(processor: Mapping[str, Any]) -> int:
    """The tokens that the post-processor of a tokenizer.json writes between two texts."""
    if processor.get("type") == "RobertaProcessing":
        return 2
    if processor.get("type") == "Sequence":
        return max(map(_separators, processor.get("processors") or [{}]))
    pair = processor.get("pair") or []
    texts = [place for place, piece in enumerate(pair) if "Sequence" in piece]
    return max(1, texts[1] - texts[0] - 1) if len(texts) == 2 else 1


def train(vocab_size: int, texts: Iterable[str], more: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` tokens learnt from the texts, with the reserved
    special tokens and `more` of them first; lossless for any text. Fewer tokens come back where the
    texts have fewer pairs to merge."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), "isolated"),
            # The split above replaces GPT-2's own, which `use_regex` would apply as well.
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*RESERVED, *more],
        # All 256 bytes, whether or not the texts have them: only then any text can be encoded.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    # Through the file, so that a tokenizer just trained and one read later are the same.
    return load(backend.to_str().encode(), {})


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """256 characters: the one that stands for each byte in a byte-level vocabulary.

    Source: `bytes_to_unicode` of GPT-2's encoder.py. Bytes that are printable in Latin-1 stand for
    themselves; the others, blanks and controls, are U+0100 and up in order.
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def _encode_texts(backend: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    # The fast form computes no offsets, which only `_align_texts` wants.
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


@functools.lru_cache(maxsize=2)
def _aligning(spec: str, split: bool) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(spec)
    backend.encode_special_tokens = split
    return backend


def _align_texts(spec: str, split: bool, texts: list[str]) -> list[Aligned]:
    # Without its post-processor, which gives the spaces around a word to no token.
    encodings = _aligning(spec, split).encode_batch(texts, add_special_tokens=False)
    return [(encoding.ids, encoding.offsets) for encoding in encodings]


def _special(spec: dict[str, Any]) -> dict[str, int]:
    """Added tokens by string, special ones in preference (older files mark none of them)."""
    added = spec.get("added_tokens") or []
    marked = [token for token in added if token["special"]]
    return {token["content"]: token["id"] for token in marked or added}


def named_roles(config: Mapping[str, Any]) -> dict[str, str | None]:
    """The special tokens that a tokenizer_config.json names, by role; null says that a role has
    none. A token is written as a string, or as an object with its "content"."""
    named = {role: spelt(config[f"{role}_token"]) for role in _ROLES if f"{role}_token" in config}
    # BERT's texts begin in cls and end in sep, whatever these are called.
    for role, other in (("bos", "cls_token"), ("eos", "sep_token")):
        if role not in named and config.get(other):
            named[role] = spelt(config[other])
    return named


def _config(roles: Roles, vocab: dict[str, int], split: bool) -> dict[str, Any]:
    """A tokenizer_config.json with which transformers opens the folder, and we find the same roles
    again."""
    strings = {token_id: token for token, token_id in vocab.items()}
    # Null where the vocabulary has none, so that reading it back looks for no usual name.
    tokens = {f"{role}_token": strings.get(roles[f"{role}_id"]) for role in _ROLES}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **tokens,
        **({_SPLIT_SPECIAL: True} if split else {}),
    }


def dump(value: dict[str, Any]) -> bytes:
    """JSON on one line, as bytes of UTF-8."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def _fingerprint(spec: dict[str, Any], roles: Roles, split: bool) -> str:
    """sha256 of the parts that decide ids, in one form whichever release of the library wrote the
    file."""
    # Absent, null and false are one: these options came release by release, each off by default.
    model = {
        key: value
        for key, value in spec["model"].items()
        if value is not None and value is not False
    }
    if isinstance(model.get("merges"), list):
        model["merges"] = [
            pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]
        ]
    # Older releases wrote a merge as "a b" and newer ones as ["a", "b"]: above, both became a
    # pair. Older files do not name the type BPE; and "" as a prefix is the same as none.
    if "merges" in model:
        model = {"type": "BPE"} | {key: value for key, value in model.items() if value != ""}
    # Order in the file is chance, ids are not.
    added = sorted(spec.get("added_tokens") or [], key=lambda token: token["id"])
    parts = (model, added, spec.get("normalizer"), spec.get("pre_tokenizer"), roles)
    parts += (_SPLIT_SPECIAL,) if split else ()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _word_starts(spec: dict[str, Any], vocab: dict[str, int]) -> np.ndarray:
    """bool [V]; true for the special tokens and for ids without a token."""
    # A byte-level vocabulary spells a leading space as a letter ("Ġ"), WordPiece marks what
    # continues a word instead, and the others write a space as U+2581.
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    byte_level = '"ByteLevel"' in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    starts = np.ones(max(vocab.values()) + 1, bool)
    special = {token["content"] for token in spec.get("added_tokens") or []}
    for token, token_id in vocab.items():
        if token in special:
            continue
        if spec["model"].get("type") == "WordPiece":
            starts[token_id] = not token.startswith(
                spec["model"].get("continuing_subword_prefix", "##")
            )
        elif byte_level:
            starts[token_id] = begins_word(bytes(byte_of.get(character, 0) for character in token))
        else:
            starts[token_id] = begins_word(token.replace("▁", " "))
    return starts
