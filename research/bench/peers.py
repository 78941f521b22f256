"""The peers' training steps: forward, backward and AdamW on one fixed batch, each peer's own code
and own settings.

None clips, drops out or reports metrics. Their code is installed (transformers) or in a checkout
that the user names.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from research.bench.shapes import LENGTH, SHAPES

# The same for all contenders.
ADAMW = dict(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)


def transformers_step(
    shape: str, dtype: str, compiled: bool, rows: np.ndarray
) -> Callable[[], None]:
    """The step of the Hugging Face model of the same shape with torch's fused AdamW; bfloat16 by
    autocast."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    c = SHAPES[shape]
    torch.manual_seed(0)
    if shape == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=c.vocab_size,
                hidden_size=c.d_model,
                intermediate_size=c.d_ff,
                num_hidden_layers=c.layers,
                num_attention_heads=c.heads,
                num_key_value_heads=c.kv_heads,
                max_position_embeddings=LENGTH,
                tie_word_embeddings=False,
                use_cache=False,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=c.vocab_size,
                n_positions=LENGTH,
                n_embd=c.d_model,
                n_layer=c.layers,
                n_head=c.heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
            )
        )
    # Its documentation calls the fused form the fastest.
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)
    forward = torch.compile(model) if compiled else model
    ids = torch.from_numpy(rows[:, :-1].astype(np.int64))
    return _torch_step(lambda: forward(input_ids=ids, labels=ids).loss, optimizer, dtype)


def nanogpt_step(folder: str, dtype: str, compiled: bool, rows: np.ndarray) -> Callable[[], None]:
    """nanoGPT's model with the AdamW that it configures for a CPU; bfloat16 by autocast, as its
    train.py has it."""
    import torch

    # It is no package; its files are modules at the top of the checkout.
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    c = SHAPES["gpt2"]
    torch.manual_seed(0)
    # It prints, and standard output carries the answers.
    with contextlib.redirect_stdout(sys.stderr):
        model = GPT(
            GPTConfig(
                block_size=LENGTH,
                vocab_size=c.vocab_size,
                n_layer=c.layers,
                n_head=c.heads,
                n_embd=c.d_model,
                dropout=0.0,
                bias=True,
            )
        )
        # It decays matrices and not vectors, and takes the fused form on CUDA alone.
        optimizer = model.configure_optimizers(
            ADAMW["weight_decay"], ADAMW["lr"], ADAMW["betas"], "cpu"
        )
    forward = torch.compile(model) if compiled else model
    # nanoGPT wants shifted targets, unlike the Hugging Face models.
    inputs, targets = (
        torch.from_numpy(ids.astype(np.int64)) for ids in (rows[:, :-1], rows[:, 1:])
    )
    return _torch_step(lambda: forward(inputs, targets)[1], optimizer, dtype)


def _torch_step(loss: Callable[[], Any], optimizer: Any, dtype: str) -> Callable[[], None]:
    """A step of torch by a function of the loss, run once so that all is compiled."""
    import torch

    def _run() -> None:
        optimizer.zero_grad(set_to_none=True)
        # The backward pass stays outside, as torch's documentation of autocast wants it.
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            nats = loss()
        nats.backward()
        optimizer.step()

    _run()
    return _run


def nanodo_step(folder: str, dtype: str, rows: np.ndarray) -> Callable[[], None]:
    """nanodo's model (tied, without biases) and loss under plain optax AdamW, in the order of its
    train step.

    Its bfloat16 is the dtype of its layers: the residual stream and the head stay float32. Left out
    are its metrics over all gradients and its wrapper for accumulation, which only cost time.
    """
    import jax
    import jax.numpy as jnp
    import optax

    sys.path.insert(0, folder)
    from nanodo.loss import get_default_loss_fn
    from nanodo.model import DoConfig, TransformerDo

    c = SHAPES["gpt2"]
    # nanodo's letters: N are its layers.
    sizes = dict(D=c.d_model, H=c.heads, L=LENGTH, N=c.layers, V=c.vocab_size, F=c.d_ff)
    model = TransformerDo(DoConfig(**sizes, dtype=jnp.dtype(dtype), fsdp_enabled=False))
    b1, b2 = ADAMW["betas"]
    optimizer = optax.adamw(ADAMW["lr"], b1=b1, b2=b2, weight_decay=ADAMW["weight_decay"])
    tokens = jax.device_put(rows[:, :-1])

    def _train_step(params, state, tokens):
        # Its own loss, which makes inputs and targets of one array of tokens.
        loss = get_default_loss_fn(tokens, model.apply, {})
        (nats, _), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, nats

    # Parameters and optimizer state are donated, as Graft's step does it.
    step = jax.jit(_train_step, donate_argnums=(0, 1))
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    state = optimizer.init(params)

    def _run() -> None:
        nonlocal params, state
        params, state, _ = jax.block_until_ready(step(params, state, tokens))

    _run()
    return _run
