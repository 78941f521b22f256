"""What a run is judged by on its way and at its end: its loss on held-out data, and what the model
writes."""

import math

import jax

from research.data.chat import end_of_turn, render_chat
from research.data.corpus import Corpus
from research.data.loader import heldout_batches
from research.data.packing import Chained
from research.data.tokenizers import Tokenizer
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.parallel.mesh import place_batch
from research.run.program import Program
from research.training.state import TrainState
from research.weights.rules import attach


def evaluate(
    program: Program, corpus: Corpus, heldout: Chained, state: TrainState, limit: int
) -> dict[str, float]:
    """Mean loss on the held-out data in nats per token, with accuracy for classes, and for plain
    text bits per byte beside gzip's.

    `limit` batches of it, 0 for all. Bits per byte of a part of the data take its bytes per token
    to be those of all.
    """
    totals = {}
    batches = heldout_batches(
        heldout,
        program.objective.example,
        batch=program.batch_size,
        limit=limit or None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in batches:
        placed = place_batch(batch, program.mesh, program.rules, program.batch_size)
        # Fetched one by one: independent programs in flight could meet their collectives in another
        # order elsewhere.
        pairs = jax.device_get(program.eval_step(state.trainable, state.frozen, placed))
        for name, (total, count) in pairs.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + float(total), before[1] + float(count))
    values = {
        name: totals[name][0] / max(totals[name][1], 1.0)
        for name in ("loss", "accuracy")
        if name in totals
    }
    if program.experiment.objective.name == "causal_lm":
        nats, count = totals["nll"]
        size, tokens = corpus.heldout_size()
        values["bits_per_byte"] = nats / count / math.log(2) * tokens / size
        values["gzip_bits_per_byte"] = corpus.provenance["gzip_bits_per_byte"]
    return values


def sample(
    program: Program, tokenizer: Tokenizer, state: TrainState, step: int
) -> tuple[str, str] | None:
    """(the config's prompt, how the model goes on), under chat as a user's message and its answer;
    None for models that do not generate."""
    e = program.experiment
    if e.model.kind == "encoder" or not e.train.sample_tokens or jax.process_count() > 1:
        return None
    prompt, chat = e.train.sample_prompt, e.objective.name == "chat"
    stop_ids = ()
    if chat:  # the template writes its own beginning and end of a text
        prompt = render_chat(tokenizer, [{"role": "user", "content": prompt}])
        stop_ids = tuple(token for token in (end_of_turn(tokenizer),) if token is not None)
    config = SamplingConfig(
        max_tokens=e.train.sample_tokens,
        temperature=0.8,
        top_p=0.95,
        seed=step,
        bos=e.objective.name != "translation" and not chat,
        stop_ids=stop_ids,
    )
    params = attach(state.frozen, state.trainable)
    [generation] = generate(program.model, params, tokenizer, [prompt], config)
    return prompt, generation.text
