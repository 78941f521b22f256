"""FLOPs that a model needs, against what a step executes and by hand."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from research.fit import flops
from research.fit.compile import abstract_batch, plan
from research.fit.flops import executed
from research.fit.targets import parse_target
from research.ops.attention import Visibility
from research.training.flops import (
    Texts,
    forward_flops,
    train_flops_per_token,
    visible_pairs,
)
from research.training.step import eval_step
from tests.configs import experiment
from tests.fit.counting import SIZES, trace


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("T", "S", "window"), [(7, 7, 0), (9, 9, 4), (5, 8, 0), (5, 8, 3), (5, 5, 9), (1, 6, 2)]
)
def test_visible_pairs_are_the_mask_s(T, S, causal, window):
    q, k = jnp.arange(S - T, S)[None], jnp.arange(S)[None]
    mask = Visibility(q, k, jnp.ones_like(q), jnp.ones_like(k), causal, window).mask_BTS()
    assert visible_pairs(T, S, causal=causal, window=window) == int(mask.sum())


@pytest.mark.parametrize(
    "model", ["llama3_8b", "gpt2", "mistral_7b", "t5_base", "transformer_base", "bert_base"]
)
def test_the_forward_is_what_evaluation_executes_but_for_what_nobody_needs(model):
    e = experiment("pretrain", f"model={model},smoke", **{"execution.attention": "xla"})
    program, c = plan(e, parse_target("cpu")), e.model
    batch = abstract_batch(program)
    with jax.set_mesh(program.mesh):
        evaluation = jax.jit(partial(eval_step, model=program.model, objective=program.objective))
        traced = evaluation.trace(program.state.trainable, program.state.held, batch)
    (B, T), S = batch["inputs"].shape, batch["encoder_inputs"].shape[1] if c.encoder_layers else 0
    hidden = T * T - visible_pairs(T, T, causal=c.kind != "encoder", window=c.window)
    wasted = 4 * B * c.layers * c.heads * c.head_size * hidden
    if model == "bert_base":  # the head over the tokens that are not predicted
        wasted += 0.85 * 2 * B * T * c.d_model * (c.vocab_size + c.d_model)
    if model == "t5_base":  # distances as products with their one-hot buckets, once a stack
        wasted += 2 * B * 32 * c.heads * (T * T + S * S)
    assert sum(executed(traced.jaxpr, 1).values()) == pytest.approx(
        flops.forward(program) + wasted, rel=1e-12
    )


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "adapter", "prefix", "ia3"])
def test_what_is_frozen_has_no_gradient(method):
    sizes = {name: size for name, size in SIZES.items() if name != "execution.unroll"} | {
        "model.kv_heads": 2
    }
    changes = {"execution.remat": "none", "execution.feed_tokens": 0}
    program, jaxpr, _ = trace(
        experiment("finetune", f"model=llama3_8b,method={method}", **sizes, **changes)
    )
    c, T, n = program.experiment.model, 128, 20 if method == "prefix" else 0
    hidden = T * (T + n) - visible_pairs(T, T + n, causal=True)
    if n == 0:  # attention in four blocks of queries, each over what stands before and in it
        hidden = 0.625 * T * T - visible_pairs(T, T, causal=True)
    wasted = 3 * 4 * program.batch_size * c.layers * c.heads * c.head_size * hidden
    assert sum(executed(jaxpr, 1).values()) == pytest.approx(
        flops.model(program) + wasted, rel=1e-12
    )
    assert (method == "full") == (flops.model(program) == 3 * flops.forward(program))


def test_experts_that_a_token_visits():
    c = replace(experiment("pretrain", "model=mixtral_8x7b,smoke").model, layers=1)
    specs = {"layers": {}}
    more = replace(c, experts_per_token=2 * c.experts_per_token)
    one, two = (forward_flops(config, specs, Texts(1, 64, predicted=64)) for config in (c, more))
    assert two - one == 2 * 64 * c.experts_per_token * 3 * c.d_model * c.d_ff


def test_the_training_figure_is_the_model_s():
    e = experiment("pretrain", "model=llama3_8b,smoke")
    program = plan(e, parse_target("cpu"))
    tokens = program.batch_size * e.data.sequence_length
    assert flops.model(program) == train_flops_per_token(e.model, e.data.sequence_length) * tokens
