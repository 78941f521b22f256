"""Whether models can be merged: one architecture, one vocabulary, one tokenizer."""

import dataclasses

from research.data.tokenizers import Tokenizer
from research.interop.beside import TEXTS
from research.interop.storage.checkpoint import Checkpoint
from research.models.config import Shape


def check_agreement(first: Checkpoint, other: Checkpoint) -> None:
    """ValueError with the reason where the second checkpoint is of another architecture, has
    another vocabulary, or reads texts by another tokenizer than the first."""
    ours, theirs = first.config, other.config
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(
            f"{other.source} has {theirs.vocab_size:,} tokens and {first.source} "
            f"{ours.vocab_size:,}; only models of one vocabulary can be merged"
        )
    # How norms are stored is each format's own, and the length is a promise and no shape unless
    # positions are learned.
    free = {"norm_offset", *(() if ours.position == "learned" else ("max_length",))}
    for field in dataclasses.fields(Shape):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if a != b and field.name not in free:
            raise ValueError(
                f"{other.source} is of another architecture than {first.source}: {field.name} is "
                f"{b!r} and {a!r}; only models tuned from one start can be merged"
            )
    for path in sorted(first.parameters.keys() ^ other.parameters.keys()):
        lacks = other if path in first.parameters else first
        raise ValueError(f"{lacks.source} has no {path}, which the others have; give one that has")
    if first.tokenizer is None or other.tokenizer is None:
        return
    if difference := _difference(first.tokenizer, other.tokenizer):
        raise ValueError(
            f"the tokenizers of {first.source} and {other.source} differ: {difference}; the same "
            "row of a table would stand for two tokens"
        )


def _difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """The first token, or text, that two tokenizers read differently; "" where there is none."""
    # A GGUF file and a folder of one model have different fingerprints and the same tokens.
    if ours.fingerprint == theirs.fingerprint:
        return ""
    for token in range(min(ours.vocab_size, theirs.vocab_size)):
        a, b = ours.decode([token]), theirs.decode([token])
        if a != b:
            return f"token {token} is {a!r} and {b!r}"
    pairs = zip(TEXTS, ours.encode_batch(list(TEXTS)), theirs.encode_batch(list(TEXTS)))
    return next((f"{text!r} gets other ids" for text, a, b in pairs if a != b), "")
