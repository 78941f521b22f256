"""The engine as a function: `write` continues prompts as `research.infer.decode.generate` does.

It reads what prompts have in common once, such as the prompt of a group of samples or the examples
in front of questions, and a text that ends makes room for the next one; but it comes back to the
host for every token, where the loop writes up to 32 in one call.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax

from research.data.tokenizers import Tokenizer
from research.devices.backend import platform
from research.infer.decode import ROWS, Generation, generate
from research.infer.padding import bucket, chunk_size, row_count
from research.infer.progress import reading
from research.infer.prompts import Prompt, check_ids, prompt_ids
from research.infer.sampling import SamplingConfig
from research.models.adapters import virtual_tokens
from research.models.model import Model
from research.serve.engine import Engine
from research.serve.limits import longest_text
from research.serve.request import Request
from research.tree import Tree

PAGE_SIZE = 16


def write(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    config: SamplingConfig = SamplingConfig(),
) -> list[Generation]:
    """One continuation for each prompt, in order, with the tokens of `generate`, whose arguments
    and errors these are; what an engine does not run (`fits`) is left to it."""
    asked = model, params, tokenizer, prompts, config
    ids = [prompt_ids(tokenizer, prompt, config.bos) for prompt in prompts]
    # One prompt has nothing to share and nobody to make room for.
    if len(ids) < 2 or not fits(model, params, ids, config):
        return generate(*asked)
    engine = _engine(*asked, ids)
    found = engine.generate(_requests(ids, config))
    return [
        Generation(prompt, text.text, text.token_ids, text.logprobs, text.finish)
        for prompt, text in zip(prompts, found)
    ]


def pieces(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
    """Yields (index of the request, piece of its text) as soon as a piece can no longer change."""
    texts = [engine.submit(request) for request in requests]
    longest = max((len(text.prompt) for text in texts), default=0)
    show, reads = reading(longest), True
    places = {text.number: index for index, text in enumerate(texts)}
    sent = [0] * len(texts)
    while not all(text.finish for text in texts):
        written_now = engine.step()
        if reads:  # up to the first token
            read = max(text.cached for text in texts)
            reads = not written_now
            show(read if reads else longest, None)
        for text in written_now:
            index, written = places[text.number], text.written
            if written.certain > sent[index]:
                yield index, written.text[sent[index] : written.certain]
                sent[index] = written.certain


def longest(model: Model, params: Tree) -> int:
    """The longest text in tokens that an engine writes with these parameters."""
    return longest_text(model.config, virtual_tokens(params), PAGE_SIZE)


def fits(
    model: Model,
    params: Tree,
    ids: Sequence[list[int]],
    config: SamplingConfig,
    media: Collection[str] = (),
) -> bool:
    """Whether an engine writes these texts, on the mesh that is set; `media` says whether they have
    "images" or "sounds". It does not write those of an encoder-decoder, which begin with an
    encoder's, those with images that see the prompt whole, those beyond a model's positions or its
    first rotation, those of which a mesh splits the tokens, those that it splits by rows, for
    it would compute each row on every part of the mesh, nor any in a job of several processes. On
    an accelerator the loop writes too: nobody has timed there what it costs to come back to the
    host for every token."""
    c, most = model.config, max(map(len, ids), default=1)
    if c.kind != "decoder" or c.scores_texts or most + config.max_tokens > longest(model, params):
        return False
    if "images" in media and c.image.attention == "prefix":
        return False
    if platform() != "cpu" or jax.process_count() > 1:
        return False
    mesh = jax.sharding.get_abstract_mesh()
    names = () if mesh.empty else (*model.rules["batch"], *model.rules["length"])
    return math.prod(mesh.shape[name] for name in names) == 1


def _engine(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    ids: Sequence[list[int]],
) -> Engine:
    """An engine for prompts with these ids. ValueError for ids outside the vocabulary."""
    for index, (prompt, tokens) in enumerate(zip(prompts, ids)):
        check_ids(model.config, index, prompt, tokens)
    most = max(map(len, ids), default=1)
    # Rounded up as those of the loop are, so that the next prompts find the programs compiled.
    rows = min(ROWS, row_count(max(1, len(ids)), model))
    length = min(bucket(most + config.max_tokens), longest(model, params))
    sizes: dict[str, Any] = {"rows": rows, "chunk": chunk_size(most), "length": length}
    sizes |= {"pages": rows * -(-length // PAGE_SIZE), "page_size": PAGE_SIZE}
    return Engine(model, params, tokenizer, few=True, **sizes)


def _requests(ids: Sequence[list[int]], config: SamplingConfig) -> list[Request]:
    copies: Counter[tuple[int, ...]] = Counter()
    requests = []
    for tokens in ids:
        # Equal prompts are numbered, so that they get different random numbers.
        requests.append(Request(tokens, config, copies[tuple(tokens)]))
        copies[tuple(tokens)] += 1
    return requests
