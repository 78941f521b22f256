"""Reading prompts and writing texts as works of a card."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from research.bench.card_works import Work
from research.infer import steps
from research.infer.decode_layout import move, prepare
from research.infer.sampling import SamplingConfig
from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import initialize
from research.precision import Precision
from research.weights.rules import quantize

Run = Callable[[], Any]
# Ids of -1 never occur, so no row stops before all tokens are written.
STOP_IDS = np.full(8, -1, np.int32)


def decode(work: Work, config: ModelConfig, prompts: np.ndarray, new: int) -> Run:
    """Prompts [B, T] are read, and `new` tokens are written greedily. Prefill counts."""
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
    streams = [(row, 0) for row in range(work.rows)]
    start = steps.Start(prompts.tolist(), None, [new] * work.rows, streams, 0)

    def _run() -> None:
        state, *written = steps.begin(model, params, prepared, start, sampling, STOP_IDS)
        jax.block_until_ready(written)
        for first in range(1, new, steps.TOKENS):
            count = np.int32(min(steps.TOKENS, new - first))
            opened = np.ones(len(written[0]), bool)
            state, *written = steps.advance(
                prepared, state, opened, count, STOP_IDS, model=model, sampling=sampling
            )
            jax.device_get(written)

    return _run
