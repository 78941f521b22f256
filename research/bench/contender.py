"""A contender's process: python -m research.bench.contender SHAPE:DTYPE:NAME[:CHECKOUT], or
product:DTYPE:LIBRARY."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from research.bench import peers
from research.bench.shapes import BATCH, LENGTH, PRODUCT_SIDE, SHAPES
from research.bench.turns import serve


def main() -> None:
    """Prepares the work that the argument names and does it when asked."""
    # A folder comes last, since its path may have colons of its own.
    kind, dtype, name, *folder = sys.argv[1].split(":", 3)
    # The same peer under torch.compile is a contender of its own.
    peer, compiled = name.removesuffix("_compiled"), name.endswith("_compiled")
    if kind == "product":
        # The product is a contender like any other: it takes turns, in a process of its own.
        serve(jax_product(dtype) if name == "jax" else torch_product(dtype))
    elif peer == "graft":
        serve(graft_step(kind, dtype))
    elif peer == "transformers":
        serve(peers.transformers_step(kind, dtype, compiled, tokens()))
    elif peer == "nanogpt":
        serve(peers.nanogpt_step(*folder, dtype, compiled, tokens()))
    elif peer == "nanodo":
        serve(peers.nanodo_step(*folder, dtype, tokens()))
    else:
        raise ValueError(f"contender {name!r} is unknown")


def tokens() -> np.ndarray:
    """One fixed random batch, int32 [16, 257]."""
    return (
        np.random.default_rng(0)
        .integers(0, SHAPES["llama"].vocab_size, (BATCH, LENGTH + 1))
        .astype(np.int32)
    )


def batch_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """A batch of our causal objective, of texts int32 [B, T + 1] that fill their rows."""
    B, T = rows.shape[0], rows.shape[1] - 1
    ones = np.ones((B, T), np.int32)
    return {
        "inputs": rows[:, :-1],
        "targets": rows[:, 1:],
        "weights": ones.astype(np.float32),
        "segments": ones,
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
    }


def graft_step(shape: str, dtype: str) -> Callable[[], float]:
    """Our train step, as `research.train` takes it, with AdamW and without clipping."""
    from research.models.config import Execution
    from research.precision import Precision
    from research.training.optimizer import OptimizerConfig

    sections = {"execution": Execution(unroll=0), "precision": Precision(compute=dtype)}
    # None of the peers clips in this benchmark, see research/bench/peers.py.
    sections["optimizer"] = OptimizerConfig(clip_norm=None)
    return step_of(SHAPES[shape], tokens(), **sections)


def step_of(model: Any, rows: np.ndarray, **sections: Any) -> Callable[[], float]:
    """A compiled function that takes a train step of a new model on the same texts int32 [B, T + 1]
    and returns its loss. `sections` are those of `Experiment` that are not at their defaults."""
    import jax

    from research.data.config import DataConfig
    from research.experiment.config import Experiment, make_experiment
    from research.objectives.causal_lm import CausalLM
    from research.run.program import make_program, take_step
    from research.run.repeated_feed import RepeatedFeed
    from research.run.start import first_state

    data = DataConfig(sequence_length=rows.shape[1] - 1, batch_size=len(rows))
    experiment: Experiment = replace(make_experiment({}), model=model, data=data, **sections)
    # One batch for all steps: its loading is not what is measured.
    program, feed = make_program(experiment, CausalLM()), RepeatedFeed(batch_of(rows))
    feed.begin(0, {})
    with jax.set_mesh(program.mesh):
        state, _ = first_state(program)

    def _run() -> float:
        nonlocal state
        with jax.set_mesh(program.mesh):
            # JAX returns before the work is done, so the clock must wait for it.
            state, metrics = jax.block_until_ready(take_step(program, state, feed))
        return metrics["loss"].item()

    _run()
    return _run


def jax_product(dtype: str) -> Callable[[], None]:
    """A square matrix product by XLA, with a float32 result: the only one that its CPU backend has
    for bfloat16."""
    import jax
    import jax.numpy as jnp

    # The values do not matter for the time, as long as they are normal numbers.
    x = jnp.ones((PRODUCT_SIDE, PRODUCT_SIDE), dtype)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32))
    return lambda: jax.block_until_ready(product(x, x))


def torch_product(dtype: str) -> Callable[[], None]:
    """A square matrix product by torch."""
    import torch

    # The same values as XLA's product; the time does not depend on them.
    x = torch.ones((PRODUCT_SIDE, PRODUCT_SIDE), dtype=getattr(torch, dtype))
    return lambda: torch.matmul(x, x)


if __name__ == "__main__":
    main()
