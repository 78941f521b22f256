"""A contender's process: python -m research.bench.contender SHAPE:DTYPE:NAME[:CHECKOUT], or
product:DTYPE:LIBRARY."""

import sys
from collections.abc import Callable

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


def graft_step(shape: str, dtype: str) -> Callable[[], None]:
    """Our train step, as `research.train` jits it."""
    from functools import partial

    import jax

    from research.models.config import Execution
    from research.models.model import Model
    from research.models.spec import initialize
    from research.objectives.causal_lm import CausalLM
    from research.parallel.mesh import make_mesh
    from research.precision import Precision
    from research.training.optimizer import OptimizerConfig, make
    from research.training.state import new_state
    from research.training.step import train_step

    mesh = make_mesh("")
    model = Model(SHAPES[shape], Precision(compute=dtype), Execution(unroll=0))
    specs = model.specs()
    optimizer, _ = make(
        OptimizerConfig(clip_norm=None), jax.tree.map(lambda s: s.axes, specs), 1000
    )
    # Donating the state is what training does too: without it the step holds it twice.
    step = jax.jit(
        partial(train_step, model=model, objective=CausalLM(), optimizer=optimizer),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):
        # One batch for all steps: its loading is not what is measured.
        batch = jax.device_put(batch_of(tokens()))
        params = initialize(jax.random.key(0), specs, "float32", mesh, model.rules)
        state = jax.jit(lambda: new_state(params, {"base": {}}, optimizer, 0))()

    def _run() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            # JAX returns before the work is done, so the clock must wait for it.
            state, _ = jax.block_until_ready(step(state, batch))

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

    x = torch.ones((PRODUCT_SIDE, PRODUCT_SIDE), dtype=getattr(torch, dtype))
    return lambda: torch.matmul(x, x)


if __name__ == "__main__":
    main()
