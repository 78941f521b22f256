"""Which models an engine can run, and how long its texts may be."""

import jax
import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer.prompt_images import with_places
from research.infer.prompts import check_ids, prompt_ids
from research.models.config import ModelConfig
from research.models.model import Model
from research.serve.pages import Pages
from research.serve.request import Request


def check_model(model: Model, rows: int, chunk: int) -> None:
    """ValueError for a model that an engine cannot run, and for sizes that are no sizes."""
    if model.config.kind != "decoder":
        raise ValueError(
            f"the model is an {model.config.kind}, and an engine continues texts with a decoder; "
            "python -m research.generate runs an encoder-decoder"
        )
    if model.config.scores_texts:
        raise ValueError(
            "the model scores texts (model.labels) and writes none; python -m research.evaluate "
            "--pairs=FILE compares answers by it"
        )
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["context"]
    if parts > 1:
        raise ValueError(
            f"the mesh splits texts (context:{parts}), and an engine has each whole; set a mesh "
            "without context"
        )
    for name, size in (("rows", rows), ("chunk", chunk)):
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1; give the engine more")


def check_guesses(drafts: int, model: bool, bits: int | None, page_size: int) -> None:
    """ValueError for numbers of `drafts` that an engine cannot guess, with a draft `model` or
    without, and keep in pages of so many tokens."""
    if drafts < 0:
        raise ValueError(f"drafts={drafts} must be at least 0; 0 guesses nothing ahead")
    if model and not drafts:
        raise ValueError("a draft model without drafts guesses nothing; set drafts, such as 4")
    if bits is not None and drafts >= page_size:
        raise ValueError(
            f"drafts={drafts} must be less than page_size={page_size} where pages are rounded to "
            f"{bits} bits; guess less, or set larger pages"
        )


def prompt_tokens(
    c: ModelConfig, tokenizer: Tokenizer, request: Request, length: int, chunk: int
) -> list[int]:
    """The tokens of a request's prompt, places of its media included, where a text has `length` at
    most and a step reads `chunk`. ValueError for tokens outside the vocabulary, a prompt that
    leaves no room for one, media without places, and a prompt too long to be seen whole."""
    prompt, media = prompt_ids(tokenizer, request.prompt, request.sampling.bos), request.media
    if media:
        prompt = with_places(c, 0, prompt, media.get("images"), media.get("sounds"))
    check_ids(c, 0, request.prompt, prompt, media=bool(media))
    if request.media:
        _check_media(c, request, prompt, chunk)
    beyond = [token for token, _ in request.penalties.bias if token >= c.vocab_size]
    if beyond:
        raise ValueError(
            f"a bias for token {beyond[0]} must be for one in [0, {c.vocab_size}), the model's "
            "vocabulary"
        )
    if len(prompt) >= length:
        raise ValueError(
            f"the prompt has {len(prompt):,} tokens, and a text of this engine at most "
            f"{length:,} with what is written; shorten it"
        )
    return prompt


def _check_media(c: ModelConfig, request: Request, prompt: list[int], chunk: int) -> None:
    whole = "images" in request.media and c.image.attention == "prefix"
    if whole and len(prompt) > chunk:
        raise ValueError(
            f"the prompt has {len(prompt):,} tokens, which this model sees whole "
            f"(model.image.attention='prefix'), and a step of this engine reads {chunk:,}; shorten "
            f"it, or give the engine a chunk of {len(prompt) - c.image.tokens:,} (--chunk)"
        )
    if request.prompt_logprobs:
        raise ValueError(
            "the places of media have no log-probabilities; leave out the media or prompt_logprobs"
        )
    for name, of, each in (("images", c.image, c.image.frames), ("sounds", c.sound, 1)):
        given = len(request.media.get(name, ())) // each
        places = np.count_nonzero(np.array(prompt) == of.token) if given else 0
        if places != given * of.tokens:
            raise ValueError(
                f"the prompt has {places} places of id {of.token}, and its {given} {name} take "
                f"{given * of.tokens}; name the place once for each"
            )


def longest_text(c: ModelConfig, virtual: int, page_size: int) -> int:
    """The longest text in tokens that an engine writes with a model, behind `virtual` tokens."""
    made = c.max_length - virtual
    if c.rope_scaling.by_length:
        # A longer text rotates all of its keys anew, those in the cache too. Texts keep to the
        # first rotation, and to whole pages, because a step's rotation is that of its last key.
        original = int(c.rope_scaling.original_length) - virtual
        made = min(made, original // page_size * page_size)
    return made


def text_length(c: ModelConfig, virtual: int, pages: Pages, wanted: int | None) -> int:
    """The longest text in tokens: `wanted`, or by default as long as the model was made for and the
    pool has room for. ValueError for one that is longer than either, or has no room for a token
    after its prompt."""
    made = longest_text(c, virtual, pages.page_size)
    room = pages.count * pages.page_size
    most = min(made, room)
    length = most if wanted is None else wanted
    if not 2 <= length <= most:
        raise ValueError(
            f"texts of {length:,} tokens must have at least 2, and at most the {made:,} that the "
            f"model can have here and the {room:,} of {pages.count:,} pages of {pages.page_size}; "
            "set length or pages"
        )
    return length
