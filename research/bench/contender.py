"""A contender's process: python -m research.bench.contender SHAPE:DTYPE:NAME, or product:DTYPE:LIBRARY."""

import sys
from collections.abc import Callable

import numpy as np

from research.bench.shapes import BATCH, LENGTH, PRODUCT_SIDE, SHAPES
from research.bench.turns import serve


def main() -> None:
    """Prepares the work that the argument names and does it when asked."""
    kind, dtype, name = sys.argv[1].split(":")
    if kind == "product":
        serve(jax_product(dtype) if name == "jax" else torch_product(dtype))
    elif name == "graft":
        serve(graft_step(kind, dtype))
    else:
        serve(transformers_step(kind, dtype, compiled=name.endswith("compiled")))


def tokens() -> np.ndarray:
    """One fixed random batch, int32 [16, 257]."""
    return np.random.default_rng(0).integers(0, SHAPES["llama"].vocab_size, (BATCH, LENGTH + 1)).astype(np.int32)


def graft_step(shape: str, dtype: str) -> Callable[[], None]:
    """Our train step, as `research.train` jits it."""
    from functools import partial

    import jax

    from research.mesh import make_mesh
    from research.models.config import Execution
    from research.models.model import Model
    from research.models.spec import initialize
    from research.objectives.causal_lm import CausalLM
    from research.precision import Precision
    from research.training.optimizer import OptimizerConfig, make
    from research.training.state import new_state
    from research.training.step import train_step

    mesh = make_mesh("")
    model = Model(SHAPES[shape], Precision(compute=dtype), Execution(unroll=0))
    specs = model.specs()
    optimizer, _ = make(OptimizerConfig(clip_norm=None), jax.tree.map(lambda s: s.axes, specs), 1000)
    step = jax.jit(partial(train_step, model=model, objective=CausalLM(), optimizer=optimizer), donate_argnums=0)
    rows = tokens()
    ones = np.ones((BATCH, LENGTH), np.int32)
    batch = {
        "inputs": rows[:, :-1], "targets": rows[:, 1:], "weights": ones.astype(np.float32), "segments": ones,
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
    }  # fmt: skip
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch)
        params = initialize(jax.random.key(0), specs, "float32", mesh)
        state = jax.jit(lambda: new_state(params, {}, optimizer, 0))()

    def run() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, _ = jax.block_until_ready(step(state, batch))

    run()
    return run


def transformers_step(shape: str, dtype: str, compiled: bool) -> Callable[[], None]:
    """The step of the Hugging Face model of the same shape with torch's fused AdamW; bfloat16 by autocast."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    c = SHAPES[shape]
    torch.manual_seed(0)
    if shape == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.layers,
                num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, max_position_embeddings=LENGTH,
                tie_word_embeddings=False, use_cache=False,
            )
        )  # fmt: skip
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=c.vocab_size, n_positions=LENGTH, n_embd=c.d_model, n_layer=c.layers, n_head=c.heads,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            )
        )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    ids = torch.from_numpy(tokens()[:, :-1].astype(np.int64))

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()

    run()
    return run


def jax_product(dtype: str) -> Callable[[], None]:
    """A square matrix product by XLA."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((PRODUCT_SIDE, PRODUCT_SIDE), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(x, x))


def torch_product(dtype: str) -> Callable[[], None]:
    """A square matrix product by torch."""
    import torch

    x = torch.ones((PRODUCT_SIDE, PRODUCT_SIDE), dtype=getattr(torch, dtype))
    return lambda: torch.matmul(x, x)


if __name__ == "__main__":
    main()
