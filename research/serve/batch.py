"""The engine as a function: `write` continues prompts as `research.infer.decode.generate` does.

It reads what prompts have in common once, such as the prompt of a group of samples or the examples
in front of questions, and a text that ends makes room for the next one; but it comes back to the
host for every token, where the other writes up to 32 in one loop on the device.
"""

from collections import Counter
from collections.abc import Sequence

import jax

from research.data.tokenizers import Tokenizer
from research.infer.decode import ROWS, Generation, generate
from research.infer.padding import bucket, chunk_size
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
    and errors these are. What an engine does not run is left to it: encoder-decoders, whose texts
    begin with an encoder's, texts beyond a model's first rotation, those that a mesh splits, and
    all in a job of several processes."""
    ids = [prompt_ids(tokenizer, prompt, config.bos) for prompt in prompts]
    longest = max(map(len, ids), default=1)
    most = longest_text(model.config, virtual_tokens(params), PAGE_SIZE)
    mesh = jax.sharding.get_abstract_mesh()
    split = jax.process_count() > 1 or (not mesh.empty and mesh.shape["context"] > 1)
    if model.config.kind != "decoder" or longest + config.max_tokens > most or split:
        return generate(model, params, tokenizer, prompts, config)
    for index, (prompt, tokens) in enumerate(zip(prompts, ids)):
        check_ids(model.config, index, prompt, tokens)
    rows = max(1, min(ROWS, len(prompts)))
    # Rounded up as those of `generate` are, so that the next prompts find the programs compiled.
    length = min(bucket(longest + config.max_tokens), most)
    engine = Engine(
        model,
        params,
        tokenizer,
        pages=rows * -(-length // PAGE_SIZE),
        page_size=PAGE_SIZE,
        rows=rows,
        chunk=chunk_size(longest),
        length=length,
    )
    copies: Counter[tuple[int, ...]] = Counter()
    requests = []
    for tokens in ids:
        # Equal prompts are numbered, so that they get different random numbers.
        requests.append(Request(tokens, config, copies[tuple(tokens)]))
        copies[tuple(tokens)] += 1
    found = engine.generate(requests)
    return [
        Generation(prompt, text.text, text.token_ids, text.logprobs, text.finish)
        for prompt, text in zip(prompts, found)
    ]
