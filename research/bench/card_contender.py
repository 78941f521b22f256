"""A contender's process: python -m research.bench.card_contender WORK WHO ROUNDS. It prints one
line of JSON: seconds, tokens_per_second, device, peak_bytes."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from research.bench import card_peers
from research.bench.card import OURS, WORKS, Work
from research.devices.backend import platform
from research.models.config import ModelConfig
from research.models.presets import PRESETS

RANK = 16  # of the adapters on all linear layers
NEW = 128  # tokens of a continuation
# Every work in seconds on a CPU, to show that it runs; two heads a key keep grouped queries.
SMALL = dict(
    layers=1, vocab_size=256, d_model=64, d_ff=128, heads=4, kv_heads=2, head_size=16,
    max_length=64, window=16,
)  # fmt: skip
Run = Callable[[], Any]


def main() -> None:
    """Prepares the work, does it, and prints the row."""
    name, who, rounds = sys.argv[1:]
    # A card's sizes would take a CPU hours.
    small = platform() == "cpu"
    work, config = sized(WORKS[name], small)
    new = min(NEW, work.tokens // 2)
    # A peer is imported by the function that runs it, so our process never imports torch.
    if who == OURS:
        makers = {"train": train, "decode": decode, "product": product, "attention": attention}
        run = makers[work.kind](work, config, new)
    else:
        run = getattr(card_peers, f"{who}_{work.kind}")(work, config, new)
    run()  # compiles, and fills caches
    seconds = []
    for _ in range(1 if small else int(rounds)):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    # The median forgives a call that something else disturbed.
    middle = statistics.median(seconds)
    # A continuation is rated by what is written; its prompt is part of the time.
    tokens = work.rows * (new if work.kind == "decode" else work.tokens)
    print(json.dumps({"seconds": middle, "tokens_per_second": tokens / middle, **device(who)}))


def sized(work: Work, small: bool) -> tuple[Work, ModelConfig]:
    """The work and the shape of its model, for this machine."""
    config = PRESETS[work.preset]
    if not small:
        return work, replace(config, layers=work.layers)
    # A window of Mistral's stays one; other shapes must not get one.
    window = SMALL["window"] if config.window else 0
    return replace(work, tokens=32), replace(config, **{**SMALL, "window": window})


def device(who: str) -> dict[str, Any]:
    """The device's name, and the peak of its memory or, on a CPU, of this process."""
    import resource

    # Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if who != OURS:
        import torch

        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            return {"device": name, "peak_bytes": torch.cuda.max_memory_allocated()}
        return {"device": "cpu", "peak_bytes": peak}
    import jax

    here = jax.local_devices()[0]
    # A CPU's backend keeps no statistics.
    told = here.memory_stats() or {}
    return {"device": here.device_kind, "peak_bytes": told.get("peak_bytes_in_use", peak)}


def texts(work: Work, config: ModelConfig, length: int) -> np.ndarray:
    """Fixed random ids [rows, length]."""
    return (
        np.random.default_rng(0)
        .integers(0, config.vocab_size, (work.rows, length))
        .astype(np.int32)
    )


def train(work: Work, config: ModelConfig, new: int) -> Run:
    """The step of `research.train`: all parameters with AdamW, or adapters on quantized weights."""
    from research.bench.contender import step_of
    from research.models.config import Execution
    from research.precision import Precision
    from research.tuning.lora_specs import LoraConfig
    from research.tuning.method import QuantizeConfig, TuneConfig

    # A small card's choice for adapters, and the usual one for all parameters.
    sections: dict[str, Any] = {"execution": Execution(remat="full")}
    if work.format:
        tuned = dict(tune=TuneConfig("lora"), lora=LoraConfig(RANK))
        sections = {**tuned, "quantize": QuantizeConfig(work.format)}
        sections["execution"] = Execution(remat="offload")
    # One id more than inputs: each is the target of the one before.
    rows = texts(work, config, work.tokens + 1)
    return step_of(config, rows, precision=Precision(compute="bfloat16"), **sections)


def decode(work: Work, config: ModelConfig, new: int) -> Run:
    """Prompts of all but `new` tokens are read, and `new` are written greedily. Prefill counts."""
    import jax

    from research.infer import steps
    from research.infer.decode_layout import move, prepare
    from research.infer.sampling import SamplingConfig
    from research.models.model import Model
    from research.models.spec import initialize
    from research.precision import Precision
    from research.weights.rules import quantize

    model = Model(config, Precision(param="bfloat16", compute="bfloat16"))
    # Random weights: the time of a step does not depend on them.
    params = jax.jit(lambda: initialize(jax.random.key(0), model.specs(), "bfloat16"))()
    if work.format:
        # Embedding and head stay in bfloat16, as bitsandbytes leaves them.
        rules = [(r"layers/.*/(query|key|value|out|gate|up|down)", work.format), (".*", None)]
        params = quantize(params, model.specs(), rules)
    # Once, as generation does it; `prepare` lays out what each call needs.
    params = move(model, params)
    prepared = prepare(model, params)
    sampling = SamplingConfig(temperature=0).distribution
    # Ids of -1 never occur, so no row stops before all tokens are written.
    stop_ids = np.full(8, -1, np.int32)
    prompts = texts(work, config, work.tokens - new).tolist()
    streams = [(row, 0) for row in range(work.rows)]
    start = steps.Start(prompts, None, [new] * work.rows, streams, 0)

    def _run() -> None:
        state, *written = steps.begin(model, params, prepared, start, sampling, stop_ids)
        for first in range(1, new, steps.TOKENS):
            count = np.int32(min(steps.TOKENS, new - first))
            opened = np.ones(len(written[0]), bool)
            state, *written = steps.advance(
                prepared, state, opened, count, stop_ids, model=model, sampling=sampling
            )
            jax.device_get(written)

    return _run


def product(work: Work, config: ModelConfig, new: int) -> Run:
    """Tokens times the widest matrix of a layer, in bfloat16 or quantized."""
    import jax
    import jax.numpy as jnp

    from research.ops.einsum import einsum
    from research.weights.quantized import quantize_array

    w = jax.random.normal(jax.random.key(0), (config.d_model, config.d_ff), jnp.bfloat16)
    weight = quantize_array(w, work.format, inputs=1) if work.format else w
    x = jax.random.normal(jax.random.key(1), (work.rows, work.tokens, config.d_model), w.dtype)
    # Arguments and not constants, which XLA might fold.
    multiply = jax.jit(lambda x, w: einsum("BTD,DF->BTF", x, w))
    return lambda: jax.block_until_ready(multiply(x, weight))


def attention(work: Work, config: ModelConfig, new: int) -> Run:
    """Forward and backward of a layer's attention over packed rows, by the kernel that a run
    takes."""
    import jax
    import jax.numpy as jnp

    from research.ops.attention import Visibility, attend

    B, T, H = work.rows, work.tokens, config.head_size
    heads = config.heads, config.kv_heads, config.kv_heads
    made = [jax.random.normal(jax.random.key(n), (B, T, N, H)) for n, N in enumerate(heads)]
    queries_keys_values = [x.astype(jnp.bfloat16) for x in made]
    positions = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
    # One segment: all rows are a single text, which is the most work that a mask can leave.
    tokens = positions, positions, jnp.ones_like(positions), jnp.ones_like(positions)

    def _loss(q, k, v, tokens):
        seen = Visibility(*tokens, causal=True, window=config.window, packed=True)
        return jnp.sum(attend(q, k, v, seen, scale=H**-0.5).astype(jnp.float32))

    # Both passes, since a kernel's backward pass is another kernel.
    gradient = jax.jit(jax.grad(_loss, argnums=(0, 1, 2)))
    return lambda: jax.block_until_ready(gradient(*queries_keys_values, tokens))


if __name__ == "__main__":
    main()
