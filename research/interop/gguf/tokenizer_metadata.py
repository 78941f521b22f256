"""From a tokenizer's files to the `tokenizer.*` metadata of a GGUF file: the inverse of
`research.interop.gguf.tokenizer`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from research.data.tokenizers.special import find_roles
from research.data.tokenizers.template_files import DEFAULT, templates_of
from research.interop.gguf.scores import NORMAL
from research.interop.gguf.vocabulary import (
    BYTE,
    FILE,
    MASKS,
    ROLES,
    UNUSED,
    Vocabulary,
    parse_object,
    read_side,
    read_vocabulary,
)


def tokenizer_metadata(files: Mapping[str, bytes], vocab_size: int = 0) -> dict[str, Any]:
    """The `tokenizer.*` keys for the contents of a tokenizer's files, by file name.

    `files` has a tokenizer.json (byte-level or sentencepiece BPE, or BERT's WordPiece) or a
    sentencepiece tokenizer.model; special tokens and template are taken from tokenizer_config.json
    and chat_template.jinja if these are there. `vocab_size` is the number of rows in the model's
    table: rows without a token become unused tokens. ValueError, one line, for a tokenizer that
    llama.cpp would not encode alike, and for more tokens than rows.
    """
    config = read_side(files).config
    spec, vocabulary = read_vocabulary(files)
    count = len(vocabulary.tokens)
    # llama.cpp wants as many tokens as the table has rows, which models pad to a round number.
    # These names are those of its own conversion script.
    tokens = vocabulary.tokens + [f"[PAD{n}]" for n in range(count, vocab_size)]
    types = vocabulary.types + [UNUSED] * (len(tokens) - len(vocabulary.types))
    if vocab_size and len(tokens) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokens)} tokens, but the model only {vocab_size} rows for them"
        )
    # Byte-level BPE is told by its merges, sentencepiece's by scores: each kind has only one of
    # the two.
    metadata = {
        "model": "gpt2" if "merges" in vocabulary.extra else "llama",
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        **vocabulary.extra,
    }
    # Unused tokens have no word to begin.
    metadata["tokens"] = [*metadata["tokens"], *tokens[len(metadata["tokens"]) :]]
    if "scores" in metadata:
        metadata["scores"] = np.pad(metadata["scores"], (0, len(tokens) - count))
    roles = _roles(config, vocabulary)
    if metadata["model"] == "bert" and "eos" in roles:
        # llama.cpp begins a text with bos and ends it with the separator.
        roles = {"sep": roles["eos"], **roles}
    for role, token_id in roles.items():
        metadata[f"{ROLES[role]}_token_id"] = token_id
    # llama.cpp puts both around a text of BERT's, whatever these keys say.
    for role in () if metadata["model"] == "bert" else ("bos", "eos"):
        added = _added_around(role, tokens[roles[role]] if role in roles else None, config, spec)
        if added is not None:
            metadata[f"add_{role}_token"] = added
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()} | _templates(files)


def blank_notes(files: Mapping[str, bytes]) -> list[str]:
    """A line where a mask takes the blanks beside it, which a GGUF file cannot say."""
    if FILE not in files:
        return []
    added = parse_object(files, FILE).get("added_tokens") or []
    taken = [x for x in added if x["content"] in MASKS and (x.get("lstrip") or x.get("rstrip"))]
    return [
        f"token {one['content']!r} takes the blank beside it where a text spells it out, and a "
        "GGUF file cannot say that"
        for one in taken
    ]


def _templates(files: Mapping[str, bytes]) -> dict[str, Any]:
    templates = {name: source for name, source in templates_of(files).items() if source}
    default = templates.pop(DEFAULT, "")
    return {
        **({"tokenizer.chat_template": default} if default else {}),
        # llama.cpp's names of further ones, such as that for conversations with tools.
        **({"tokenizer.chat_templates": [*templates]} if templates else {}),
        **{f"tokenizer.chat_template.{name}": source for name, source in templates.items()},
    }


def _roles(config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, int]:
    """Ids of the special tokens by role: as tokenizer_config.json names them, else by usual
    names."""
    # Releases differ: a token is written as a string or as an object with "content".
    named = {role: config[f"{role}_token"] for role in ROLES if f"{role}_token" in config}
    named = {
        role: token["content"] if isinstance(token, dict) else token
        for role, token in named.items()
    }
    ids = {token: n for n, token in enumerate(vocabulary.tokens)}
    special = {
        vocabulary.tokens[n]: n
        for n, kind in enumerate(vocabulary.types)
        if kind not in (NORMAL, BYTE, UNUSED)
    }
    usual = find_roles(special, {role: token for role, token in named.items() if token})
    # A role that tokenizer_config.json sets to null has no token, whatever the usual name is.
    roles = {
        role: usual[f"{role}_id"]
        for role in ("bos", "eos", "pad", "mask")
        if named.get(role, "") is not None
    }
    for role in ("unk", "sep"):
        roles[role] = ids.get(named.get(role) or (vocabulary.unk if role == "unk" else None))
    return {role: roles[role] for role in ROLES if roles.get(role) is not None}


def _added_around(
    role: str, token: str | None, config: Mapping[str, Any], spec: Mapping[str, Any]
) -> bool | None:
    """True if encoding adds the token of the role ("bos" before, "eos" after) to a text; None where
    neither tokenizer_config.json nor a tokenizer.json says."""
    if isinstance(config.get(f"add_{role}_token"), bool):
        return config[f"add_{role}_token"] and token is not None
    if not spec:
        return None
    # A Sequence holds several steps; any other step counts as a sequence of itself.
    step = spec.get("post_processor") or {}
    for part in step.get("processors", [step]):
        if part.get("type") == "TemplateProcessing":
            # The template of a single text: its first part may be bos and its last one eos.
            edge = part["single"][0 if role == "bos" else -1]
            return token is not None and edge.get("SpecialToken", {}).get("id") == token
    return False
