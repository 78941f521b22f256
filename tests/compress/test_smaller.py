"""Whole models: pruned layer by layer, without layers, and narrower."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.compress import depth, recipe, texts, width
from research.compress.calibration import windows
from research.compress.masks import Pruning
from research.compress.pruned import prune
from research.models.model import Model, forward
from research.models.spec import initialize
from research.weights.matrices import LINEAR
from research.weights.rules import is_leaf
from research.weights.sparse import Sparse, count_nonzero
from tests.families import FAMILIES, VOCAB

HALF = Pruning(0.5)


@cache
def model_of(name):
    model = Model(FAMILIES[name])
    return model, initialize(jax.random.key(0), model.specs(), jnp.float32)


@cache
def batches():
    return windows(np.random.default_rng(0).integers(0, VOCAB, 64), 16, 2)


def logits(model, params):
    return forward(model, params, batches()[0])


@pytest.mark.parametrize("method", ["wanda", pytest.param("magnitude", marks=pytest.mark.slow)])
def test_rules_choose_what_becomes_sparse(method):
    model, params = model_of("llama3_405b")
    rules = [(".*/mlp/down", Pruning(pattern=(2, 4))), (LINEAR, HALF), (".*", None)]
    pruned = tree.paths(prune(model, params, rules, method, batches()), is_leaf)
    for path, w in tree.paths(params).items():
        if "attention/" not in path and "mlp/" not in path:
            np.testing.assert_array_equal(pruned[path], w)
            continue
        assert isinstance(pruned[path], Sparse)
        assert count_nonzero(pruned[path]) == w.size / 2
        assert pruned[path].pattern == ((2, 4) if path.endswith("down") else None)
    assert logits(model, tree.unflatten(pruned)).shape == (2, 16, VOCAB)


def test_experts_and_tables_are_pruned_by_magnitude_one_by_one():
    model, params = model_of("mixtral_8x7b")
    rules = [(".*/mlp/up", HALF), ("embed/table", HALF), (".*", None)]
    pruned = prune(model, params, rules, "magnitude")
    up, table = pruned["layers"]["mlp"]["up"].dense(), pruned["embed"]["table"].dense()
    np.testing.assert_array_equal(np.count_nonzero(up, axis=(2, 3)), 32 * 64 / 2)
    assert np.count_nonzero(table) == table.size / 2


def test_what_cannot_be_pruned_is_one_line():
    model, params = model_of("llama3_405b")
    with pytest.raises(ValueError, match="embed/table is no single matrix of a layer"):
        prune(model, params, [("embed/table", HALF), (".*", None)], "wanda", batches())
    with pytest.raises(ValueError, match="final_norm/scale is no matrix"):
        prune(model, params, [("final_norm/scale", HALF), (".*", None)], "magnitude")
    with pytest.raises(ValueError, match="layers/mlp/up has 32 inputs, which groups of 5 do not"):
        rules = [(".*/mlp/up", Pruning(pattern=(2, 5))), (".*", None)]
        prune(model, params, rules, "magnitude")
    with pytest.raises(ValueError, match="'wanda' looks at the inputs of weights; give batches"):
        prune(model, params, [(LINEAR, HALF), (".*", None)], "wanda")
    sparse = prune(model, params, [(LINEAR, HALF), (".*", None)], "magnitude")
    with pytest.raises(ValueError, match="is a Sparse already; give the plain parameters first"):
        prune(model, sparse, [(LINEAR, HALF), (".*", None)], "magnitude")


def test_a_layer_that_adds_nothing_has_no_influence_and_goes_first():
    model, params = model_of("smollm3_3b")  # of three layers the second has no rotation
    idle = {"attention/out": 1, "mlp/down": 1}  # what layer 1 adds
    layers = tree.paths(params["layers"])
    for path, index in idle.items():
        layers[path] = layers[path].at[index].set(0)
    params = {**params, "layers": tree.unflatten(layers)}
    influence = depth.block_influence(model, params, batches())
    assert influence[1] == pytest.approx(0, abs=1e-6) and influence[[0, 2]].min() > 1e-3
    dropped = depth.least_influential(influence, 1)
    assert dropped == [1]
    config, smaller = depth.drop_layers(model.config, params, dropped)
    assert config.layers == 2 and config.unrotated_every == 0
    # The layer behind the hole keeps its rotation.
    np.testing.assert_allclose(
        logits(Model(config), smaller), logits(model, params), atol=1e-4, rtol=1e-4
    )


def test_layers_that_cannot_go_are_refused():
    with pytest.raises(ValueError, match="depth:4 of 4 layers leaves nothing"):
        depth.least_influential(np.arange(4.0), 4)
    with pytest.raises(ValueError, match="the first 1 layers are unlike the others"):
        depth.drop_layers(FAMILIES["deepseek_v3"], {}, [1])


@pytest.mark.parametrize("name", ["llama3_405b", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_cutting_what_is_zero_leaves_the_logits(name):
    model, params = model_of(name)
    c, layers = model.config, tree.paths(params["layers"])
    of = c.heads // c.kv_heads
    # Other channels and heads in each layer, as a real model would have.
    channels = np.stack([np.arange(16) * 2 + layer for layer in range(c.layers)])
    groups = np.stack([np.array([layer % c.kv_heads]) for layer in range(c.layers)])
    for layer in range(c.layers):
        heads = groups[layer] * of + np.arange(of)
        layers["mlp/down"] = layers["mlp/down"].at[layer, channels[layer]].set(0)
        layers["attention/out"] = layers["attention/out"].at[layer, heads].set(0)
    params = {**params, "layers": tree.unflatten(layers)}
    used = width.importance(model, params, batches())
    assert used.channels_LF.shape == (c.layers, c.d_ff)
    assert used.groups_LK.shape == (c.layers, c.kv_heads)

    def rest(gone, size):
        return np.stack([np.setdiff1d(np.arange(size), row) for row in gone])

    kept = {"channels_LF": rest(channels, c.d_ff), "groups_LK": rest(groups, c.kv_heads)}
    config, smaller = width.cut(c, params, **kept)
    assert (config.d_ff, config.kv_heads) == (c.d_ff - 16, c.kv_heads - 1)
    assert tree.count(smaller) < tree.count(params)
    np.testing.assert_allclose(
        logits(Model(config), smaller), logits(model, params), atol=1e-5, rtol=1e-4
    )


@pytest.mark.slow
def test_experts_go_with_their_routes():
    model, params = model_of("mixtral_8x7b")
    c = model.config
    kept = np.tile(np.array([0, 1, 2, 3]), (c.layers, 1))
    config, same = width.cut(c, params, experts_LE=kept)
    np.testing.assert_array_equal(logits(Model(config), same), logits(model, params))
    config, fewer = width.cut(c, params, experts_LE=kept[:, :3])
    assert fewer["layers"]["mlp"]["up"].shape[1] == config.experts == 3
    assert fewer["layers"]["mlp"]["router"].shape[-1] == 3
    with pytest.raises(ValueError, match="1 experts are left and a token goes to 2"):
        width.cut(c, params, experts_LE=kept[:, :1])
    with pytest.raises(ValueError, match="experts have channels of their own"):
        width.importance(model, params, batches())


def test_the_best_are_rounded_up_and_in_order():
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    np.testing.assert_array_equal(width.best(scores, 0.5), [[0, 2], [1, 2]])
    with pytest.raises(ValueError, match="width:0.0 keeps that share"):
        width.best(scores, 0.0)


@pytest.mark.parametrize(
    ("spelling", "says"),
    [
        ("wandaa:0.5", "did you mean wanda"),
        ("wanda:1.5", "the share 1.5 does not lie in 0 to 1"),
        ("wanda:1", "leaves nothing"),
        ("wanda:4:2", "take N:M with 0 < N < M"),
        ("gptq:int44", "did you mean int4"),
        ("depth:0", "'0' is no number of layers"),
        ("width:half", "'half' is no share"),
    ],
)
def test_recipes_that_are_misspelt(spelling, says):
    with pytest.raises(ValueError, match=says):
        recipe.parse(spelling)


def test_recipes_as_they_are_spelt():
    assert recipe.parse("sparsegpt:2:4:int4").pruning == Pruning(0.0, (2, 4), "int4")
    assert recipe.parse("wanda:0.5") == recipe.Recipe("wanda", HALF)
    assert recipe.parse("gptq:int4").rounds == "int4"
    assert not recipe.parse("magnitude:2:4").calibrated


def test_text_that_is_in_another_is_found():
    one, two = np.arange(200), np.arange(100, 400)
    assert texts.shared_runs(one, two) == pytest.approx(85 / 185)
    assert texts.shared_runs(one, np.arange(1000, 1200)) == 0
    assert replace(HALF, share=0.25).removed == 0.25
