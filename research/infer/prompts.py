"""Prompts of `research.infer.decode`: their token ids, and which of them a model can continue."""

from collections.abc import Sequence

from research.data.tokenizers import Tokenizer
from research.data.tokenizers.special import decoder_start
from research.models.config import ModelConfig

Prompt = str | Sequence[int]


def check_ids(
    c: ModelConfig, index: int, prompt: Prompt, ids: list[int], media: bool = False
) -> None:
    """ValueError for a prompt without a token, for ids outside the model's vocabulary, and for
    places of soft tokens unless whoever asks has read its `media`."""
    kinds = {"images": c.image.in_texts and c.image.token in ids}
    kinds |= {"audio": c.sound.layers > 0 and c.sound.token in ids}
    tokens = {"images": c.image.token, "audio": c.sound.token}
    for name in (name for name, there in kinds.items() if there and not media):
        what = "images" if name == "images" else "sounds"
        raise ValueError(
            f"prompt {index} has places of {what} (id {tokens[name]}), and none are given; give "
            f"them, as in load(CHECKPOINT).generate(prompts, {name}=...), which beams cannot, or "
            "leave the places out"
        )
    if not ids and isinstance(prompt, str):
        raise ValueError(
            f"prompt {index} is empty, and the model's texts begin with no token of their own; "
            "give it a word to start from"
        )
    places = {tokens[name] for name, there in kinds.items() if there}
    words = [i for i in ids if i not in places]
    if not ids or not all(0 <= i < c.vocab_size for i in words):
        raise ValueError(
            f"prompt {index} must be one or more ids in [0, {c.vocab_size}), the model's vocabulary"
        )


def beyond_positions(c: ModelConfig, lengths: Sequence[int]) -> str | None:
    """A line for the user where prompts of these lengths are longer than the texts that the model
    was made for; None where none is. Learned positions refuse such prompts, and relative ones (T5)
    have no end."""
    beyond = [length for length in lengths if length > c.max_length]
    if c.position in ("learned", "relative") or not beyond:
        return None
    which = (
        "the prompt has"
        if len(lengths) == 1
        else f"{len(beyond)} of {len(lengths)} prompts have up to"
    )
    return (
        f"{which} {max(beyond):,} tokens; the model was made for {c.max_length:,} positions, "
        "and what it writes gets worse beyond them"
    )


def at_the_last_position(
    c: ModelConfig, prompts: Sequence[int], texts: Sequence[int], wanted: int
) -> str | None:
    """A line for the user where texts, of these lengths with their prompts of these, have come to
    the end of the model's positions with fewer than the `wanted` tokens, or gone beyond it; None
    where none has. Relative positions have no end."""
    if c.position == "learned":
        met = [n for p, n in zip(prompts, texts) if n >= c.max_length and n - p < wanted]
        end = f"the end of the model's {c.max_length:,} positions, before {wanted:,} new tokens"
    else:
        met = [n for p, n in zip(prompts, texts) if p <= c.max_length < n]
        end = (
            f"{max(met, default=0):,} tokens; the model was made for {c.max_length:,} positions, "
            "and what it writes gets worse beyond them"
        )
    if c.position == "relative" or not met:
        return None
    which = "the text" if len(texts) == 1 else f"{len(met)} of {len(texts)} texts"
    return f"{which} went on to {end}"


def source_and_start(
    c: ModelConfig, tokenizer: Tokenizer, prompt: Prompt, ids: list[int], first: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(ids that the encoder reads, ids that the decoder starts from): `first`, or without any the
    one that the decoder was trained to start from. A source ends with the end token, as in
    training."""
    source = [*ids, tokenizer.eos_id] if isinstance(prompt, str) else ids
    return source, list(first) or [decoder_start(tokenizer, c.decoder_start)]


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt, bos: bool) -> list[int]:
    """Ids of a prompt. With `bos` a string gets the token in front that begins a text or, where the
    tokenizer has none, the one that ends a text, as documents in training do."""
    if not isinstance(prompt, str):
        return [int(i) for i in prompt]
    ids = tokenizer.encode(prompt)
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return [first, *ids] if bos and first is not None and ids[:1] != [first] else ids
