"""The special ids of a checkpoint in the metadata of a GGUF file, which ends a text at up to three
of them.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from research.data.chat import end_of_turn
from research.data.tokenizers import Tokenizer
from research.data.tokenizers.huggingface import FILE, load
from research.data.tokenizers.side_files import CONFIG
from research.interop.gguf.t5 import START
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.generation import as_special, end_ids

# GGUF's roles of the ids that are no ends.
_SPECIAL = {"bos_token_id": "bos", "pad_token_id": "padding"}
# llama.cpp stops at each of these: the end of a text, of a turn, and of a message to a tool.
_ENDS = ("eos", "eot", "eom")
# Tokens that it takes for ends whatever the metadata says (`special_eog_ids` in llama-vocab.cpp).
_ENDING_TEXTS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"),
    *("<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>"),
}


def read_special(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Ids by the names of a config.json; `eos_token_id` is a list where the file has several."""
    ids = {name: metadata.get(_key(role)) for name, role in _SPECIAL.items()}
    ids |= {"decoder_start_token_id": metadata.get(START)}
    special = {name: int(number) for name, number in ids.items() if number is not None}
    # A file may name one id under two roles; it is taken once.
    ends = as_special(int(metadata[_key(role)]) for role in _ENDS if _key(role) in metadata)
    return special if ends is None else {**special, "eos_token_id": ends}


def write_special(checkpoint: Checkpoint) -> tuple[dict[str, int], list[str]]:
    """(metadata, lines for the user) of a checkpoint's special ids.

    The end of a turn, by the chat template, is written as "eot"; of more than three ends the others
    are named in a line.
    """
    ids = {_key(role): checkpoint.special.get(name) for name, role in _SPECIAL.items()}
    ids |= {START: checkpoint.special.get("decoder_start_token_id")}
    metadata = {key: number for key, number in ids.items() if number is not None}
    ends = _in_order(list(end_ids(checkpoint.special)), checkpoint)
    metadata |= {_key(role): number for role, number in zip(_ENDS, ends)}
    lost = ends[len(_ENDS) :]
    if not lost:
        return metadata, []
    return metadata, [
        f"a GGUF file ends a text at {len(_ENDS)} tokens, {ends[: len(_ENDS)]}; "
        f"{len(lost)} more are left out: {lost}"
    ]


def as_llama_cpp(checkpoint: Checkpoint) -> tuple[Tokenizer | None, tuple[int, ...]]:
    """(tokenizer or None, ids that end a text) of a GGUF file as llama.cpp has them: without the
    normalization of Unicode that some models have, and with ends that it knows by their text."""
    tokenizer, ends = checkpoint.tokenizer, end_ids(checkpoint.special)
    if tokenizer is None:
        return None, ends
    spec = json.loads(tokenizer.files[FILE])
    if (spec.get("normalizer") or {}).get("type") == "NFC":
        plain = json.dumps(spec | {"normalizer": None}).encode()
        bare = load(plain, json.loads(tokenizer.files[CONFIG]))
        tokenizer = replace(bare, chat_template=tokenizer.chat_template)
    by_text = [token["id"] for token in spec["added_tokens"] if token["content"] in _ENDING_TEXTS]
    return tokenizer, tuple(dict.fromkeys((*ends, *by_text)))


def _in_order(ends: list[int], checkpoint: Checkpoint) -> list[int]:
    """The ends as `_ENDS` has them: that of a text, that of a turn, others."""
    # One end needs no order, and so no tokenizer is opened for it.
    tokenizer = checkpoint.tokenizer if len(ends) > 1 else None
    if tokenizer is None:
        return ends
    turn = _end_of_turn(tokenizer)
    # The tokenizer's own end first, if it is not the turn's: chat models often have that one as
    # eos.
    texts = sorted((n for n in ends if n != turn), key=lambda n: n != tokenizer.eos_id)
    return [texts[0], turn, *texts[1:]] if turn in ends else texts


def _end_of_turn(tokenizer: Tokenizer) -> int | None:
    if tokenizer.chat_template is None:
        return None
    try:
        return end_of_turn(tokenizer)
    except ValueError:  # a template that refuses the two messages it is tried with
        return None


def _key(role: str) -> str:
    return f"tokenizer.ggml.{role}_token_id"
