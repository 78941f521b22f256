"""What a model's configuration accepts, and that nothing it accepts is without effect."""

import dataclasses
import json
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.config import (
    Body,
    Heads,
    Initialization,
    ModelConfig,
    Regularization,
    Shape,
    config_from_json,
    layer_loss_weights,
)
from research.models.model import Model
from research.models.presets import PRESETS
from research.models.spec import abstract, initialize
from research.ops.rope_scaling import RopeScaling
from tests.families import FAMILIES, random_batch

PARTS = (Body, Heads, Regularization, Initialization)
# Other values of every field, each tried on every family.
OTHER = {
    "kind": ["decoder", "encoder"],
    "vocab_size": [97],
    "layers": [3],
    "encoder_layers": [3],
    "d_model": [48],
    "heads": [8],
    "kv_heads": [1],
    "head_size": [16],
    "d_ff": [48],
    "position": ["rope", "learned", "sinusoidal", "relative"],
    "query_growth": [0.3],
    "position_offset": [2],
    "encoder_positions": [True, False],
    "rope_theta": [123.0],
    "rope_scaling": [
        RopeScaling(2.0),
        RopeScaling(2.0, kind="linear"),
        RopeScaling(2.0, kind="dynamic", original_length=6),
        RopeScaling(2.0, kind="yarn", original_length=64),
        RopeScaling(2.0, kind="yarn", original_length=64, attention_factor=1.0),
        RopeScaling(
            kind="longrope", original_length=6, short_factors=[1.5] * 4, long_factors=[2.0] * 4
        ),
    ],
    "rotary_size": [4],
    "unrotated_every": [2],
    "layer_kinds": [("local", "unrotated"), ("global", "local"), ("unrotated", "local", "local")],
    "window": [3],
    "global_every": [2],
    "local_rope_theta": [77.0],
    "score_offsets": [True],
    "norm": ["rms", "layer"],
    "norm_bias": [False],
    "embedding_norm": [True],
    "norm_after": [True, False],
    "first_norm": [False],
    "branch_norm": [True, False],
    "norm_before": [True, False],
    "branch_scale": [0.3],
    "layer_scale": [True],
    "parallel": [True],
    "query_norm_over": ["head", "heads"],
    "norm_offset": [0.5],
    "norm_eps": [1e-3],
    "query_norm": [True, False],
    "activation": ["gelu", "relu"],
    "gated": [True, False],
    "gate_slope": [1.7],
    "gate_limit": [2.0],
    "up_offset": [1.0],
    "attention_bias": ["none", "qkv", "all", "no_key"],
    "mlp_bias": [True, False],
    "attention_scale": [0.3],
    "attention_softcap": [3.0],
    "attention_sinks": [True, False],
    "embedding_scale": [1.5],
    "experts": [2],
    "experts_per_token": [1],
    "normalized_routes": [False],
    "router_logit_bias": [True],
    "router": ["sigmoid", "sparsemixer"],
    "route_groups": [2],
    "route_scale": [2.0],
    "shared_d_ff": [24],
    "token_types": [3],
    "tied": [True, False],
    "head_scale": [0.3],
    "logit_softcap": [4.0],
    "pooler": [True, False],
    "pooling": ["mean"],
    "pooler_layer": ["relu", "head"],
    "transform_bias": [False],
    "mlm_head": [True, False],
    "head_bias": [True, False],
    "labels": [3],
    "dropout": [0.25],
    "embedding_noise": [5.0],
    "router_loss": [0.3],
    "init": ["scaled", "plain", "xavier", "t5"],
    "init_std": [0.3],
}
# Without rows in a table `max_length` is what evaluation and serving take as the longest text, and
# examples and decoding begin with `decoder_start`.
ELSEWHERE = {"max_length", "decoder_start"}
# These mean something beside others alone, with which tests/fields.py has them.
ELSEWHERE |= {"kv_latent", "query_latent", "value_size", "dense_layers", "dense_d_ff"}
ELSEWHERE |= {"groups_per_token", "shared_gate", "router_jitter", "labels_over", "image", "sound"}
# A batch for these has sounds: tests/interop/test_whisper.py.
ELSEWHERE |= {"mels", "frames"}


@cache
def program(c: ModelConfig) -> str:
    """The traced forward pass with dropout, the pooler and classifier where there are any, and the
    shapes of the parameters; initialisers by what they draw."""
    model = Model(c)

    def outputs(params, batch, key):
        hidden_BTD, losses = model.hidden(params, batch, key)
        weighted = [weight * losses[name] for name, weight in layer_loss_weights(c).items()]
        found = [*([] if c.scores_texts else [model.logits(params, hidden_BTD)]), *weighted]
        found += [model.pooled(params, hidden_BTD)] if c.pooler else []
        return found + ([model.class_logits(params, hidden_BTD)] if c.labels else [])

    params = abstract(model.specs(), jnp.float32)
    traced = jax.make_jaxpr(outputs)(params, random_batch(1, 8), jax.random.key(0))
    constants = [np.asarray(x).tobytes() for x in traced.consts]
    return f"{traced}{constants}{jax.tree.map(lambda leaf: leaf.shape, params)}"


@cache
def drawn(c: ModelConfig) -> str:
    """The traced initialisation."""
    return str(
        jax.make_jaxpr(lambda key: initialize(key, Model(c).specs(), jnp.float32))(
            jax.random.key(0)
        )
    )


def test_every_field_has_another_value_here():
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    assert names == set(OTHER) | ELSEWHERE


OF_EACH_KIND = ["gpt2", "llama3_405b", "mixtral_8x7b", "mistral_7b", "gemma3_1b"]
OF_EACH_KIND += ["bert_base", "t5_small", "bart_base"]


@pytest.mark.parametrize("field", OTHER)
def test_a_field_changes_the_program_or_is_refused(field):
    of = drawn if field in {f.name for f in dataclasses.fields(Initialization)} else program
    changed = 0
    for name in OF_EACH_KIND:
        c = FAMILIES[name]
        for value in OTHER[field]:
            if value == getattr(c, field):
                continue
            try:
                other = dataclasses.replace(c, **{field: value})
            except ValueError:
                continue
            assert of(other) != of(c), f"{name}: {field}={value} changes nothing"
            changed += 1
    assert changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_eps": -1.0}, "model.norm_eps=-1.0 must be positive"),
        ({"norm_eps": math.nan}, "model.norm_eps=nan must be positive"),
        ({"rope_theta": -1.0}, "model.rope_theta=-1.0 must be positive"),
        ({"attention_scale": -1.0}, "model.attention_scale=-1.0 must be at least 0"),
        ({"head_scale": 0.0}, "model.head_scale=0.0 must be positive"),
        ({"init_std": -0.1}, "model.init_std=-0.1 must be at least 0"),
        ({"dropout": 1.0}, r"model.dropout=1.0 must be in \[0, 1\)"),
        ({"layers": 0}, "model.layers=0 must be positive"),
        ({"position": "alibi"}, "model.position='alibi'; choose one of rope, learned"),
        ({"experts_per_token": 1}, "experts_per_token=1 changes nothing.*set model.experts"),
        (
            {"router_jitter": 0.1},
            "router_jitter=0.1 changes nothing.*set model.router='sparsemixer'",
        ),
        (
            {"experts": 4, "router": "sparsemixer", "normalized_routes": False},
            "'sparsemixer' chooses among all experts and has weights of its own",
        ),
        ({"router_loss": 0.1}, "router_loss=0.1 changes nothing.*set model.experts"),
        ({"position": "learned", "rope_theta": 5e5}, "rope_theta=500000.0 changes nothing"),
        ({"token_types": 2}, "token_types=2 changes nothing.*set model.kind='encoder'"),
        ({"mlm_head": True}, "mlm_head=True changes nothing"),
        ({"pooler": True}, "pooler=True changes nothing"),
        ({"kind": "encoder", "labels": 2}, "labels=2 changes nothing.*set model.pooler=True"),
        ({"global_every": 2}, "global_every=2 changes nothing.*set model.window"),
        ({"window": 4, "global_every": 1}, "leaves no layer model.window=4"),
        ({"experts": 4, "experts_per_token": 5}, "experts_per_token=5 must be in 1..4"),
        ({"experts": 4, "gated": False}, "experts are gated"),
        ({"branch_norm": True, "norm_after": True}, "normalise a branch twice"),
        ({"norm_before": False}, "leaves branches without a norm; set model.branch_norm"),
        ({"parallel": True, "norm_after": True}, "adds all branches at once"),
        ({"rotary_size": 64}, "rotary_size=64 must be below model.head_size=64; 0 rotates all"),
        ({"rotary_size": 3}, "rotary_size=3 must be even"),
        ({"unrotated_every": 1}, "leaves no layer rotary positions"),
        ({"position": "learned", "unrotated_every": 2}, "unrotated_every=2 changes nothing"),
        ({"position_offset": 2}, "position_offset=2 changes nothing.*position='learned'"),
        ({"query_norm_over": "heads"}, "changes nothing in this model; set model.query_norm"),
        ({"query_norm": True, "query_norm_over": "all"}, "choose one of head, heads"),
        ({"layers": 2, "layer_kinds": ("local", "wide")}, "has 'wide'; there are local, global"),
        ({"layers": 3, "layer_kinds": ("unrotated", "local")}, "names 2 layers.*layers=3"),
        ({"layers": 2, "layer_kinds": ("local", "unrotated")}, "set model.unrotated_every=2"),
        ({"layers": 2, "layer_kinds": ("global", "local")}, "without a window"),
        (
            {"layers": 2, "layer_kinds": ("unrotated", "local"), "unrotated_every": 2},
            "unrotated_every=2 changes nothing in this model; set model.layer_kinds",
        ),
        (
            {"rope_scaling": RopeScaling(kind="longrope", short_factors=[2], long_factors=[3])},
            "short_factors has 1 numbers, and heads have 32 rotary pairs",
        ),
    ],
)
def test_values_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0.0}, "model.rope_scaling.factor=0.0 must be positive"),
        ({"low_factor": 4.0}, "must be below"),
        ({"kind": "su"}, "model.rope_scaling.kind='su'; choose one of llama3, linear"),
        ({"beta_slow": 32.0}, "beta_slow=32.0 must be below beta_fast=32.0"),
        ({"attention_factor": -1.0}, "attention_factor=-1.0 must be at least 0"),
        ({"kind": "longrope"}, "wants a number for each rotary pair; set"),
        ({"kind": "longrope", "short_factors": [0.0]}, "short_factors=0.0 must be positive"),
    ],
)
def test_scalings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**changes)


def test_the_parts_are_the_whole_and_share_no_field():
    names = [field.name for part in PARTS for field in dataclasses.fields(part)]
    assert names == [field.name for field in dataclasses.fields(ModelConfig)]
    assert len(set(names)) == len(names)
    assert {field.name for field in dataclasses.fields(Shape)} == set(names) - {
        field.name for part in PARTS[2:] for field in dataclasses.fields(part)
    }


def test_a_config_comes_back_from_json_and_an_older_one_gets_defaults():
    c = PRESETS["llama3_405b"]
    values = dataclasses.asdict(c)
    assert config_from_json(values) == c
    older = {name: value for name, value in values.items() if name != "attention_softcap"}
    older["rope_scaling"] = {k: v for k, v in older["rope_scaling"].items() if k != "kind"}
    assert config_from_json(older) == c


def test_lists_come_back_from_json_as_tuples():
    scaling = RopeScaling(kind="longrope", short_factors=[1.5] * 32, long_factors=[2.0] * 32)
    c = ModelConfig(layers=2, layer_kinds=("unrotated", "local"), rope_scaling=scaling)
    assert config_from_json(json.loads(json.dumps(dataclasses.asdict(c)))) == c
    assert hash(c) is not None
