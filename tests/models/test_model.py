"""What must hold for every family, whatever its layers."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.models import layers
from research.models.config import Execution
from research.models.kinds import layer_kind
from research.models.model import Model, forward
from research.models.spec import initialize
from research.models.stack import layer_of
from research.precision import Precision
from tests.families import DECODERS, FAMILIES, random_batch, rest_slow

LENGTH = 12


@cache
def parameters(name: str) -> tree.Tree:
    """Random parameters, biases and norms included: at zero a wrong bias would go unseen."""
    specs = Model(FAMILIES[name]).specs()
    params = initialize(jax.random.key(0), specs, jnp.float32)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        [w + 0.1 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves)]
    )


@pytest.mark.parametrize("name", DECODERS)
def test_no_token_sees_what_comes_after_it_or_another_document(name):
    # The gradient of one position's logits with respect to the input states shows exactly what it
    # can see.
    c, batch = FAMILIES[name], random_batch(1, LENGTH)
    model, params = Model(c), parameters(name)

    def at(table, position):
        changed = {**params, "embed": {**params["embed"], "table": table}}
        ids = {
            **batch,
            "inputs": jnp.arange(LENGTH, dtype=jnp.int32)[None],
        }  # each token its own row of the table
        hidden_BTD, _ = model.hidden(changed, ids)
        return jnp.sum(
            jnp.sin(hidden_BTD[0, position])
        )  # not a plain sum, which a norm would make constant

    gradient = jax.jit(jax.grad(at))
    start = int(np.argmax(batch["segments"][0] == 2))
    for position in (start - 1, start, LENGTH - 1):
        seen = np.any(
            np.asarray(gradient(params["embed"]["table"], position))[:LENGTH] != 0, axis=1
        )
        own = batch["segments"][0] == batch["segments"][0, position]
        want = own & (np.arange(LENGTH) <= position)
        if c.window and not c.global_every:  # a layer that sees all of the text hides nothing
            # Two layers of a window reach twice as far.
            want &= np.arange(LENGTH) > position - (2 * (c.window - 1) + 1)
        np.testing.assert_array_equal(seen, want)


@pytest.mark.parametrize("name", FAMILIES)
def test_packing_two_documents_equals_each_alone(name):
    batch, model, params = random_batch(1, LENGTH), Model(FAMILIES[name]), parameters(name)
    packed = np.asarray(forward(model, params, batch))
    for segment in (1, 2):
        part = {k: v[:, batch["segments"][0] == segment] for k, v in batch.items()}
        alone = np.asarray(forward(model, params, part))
        # Sums over masked keys add exact zeros; what is left is the order of additions.
        np.testing.assert_allclose(packed[:, batch["segments"][0] == segment], alone, atol=2e-5)


@cache
def loss_and_gradient(name: str, execution: Execution) -> tuple[jax.Array, tree.Tree]:
    batch = random_batch(2, LENGTH)

    def loss(params):
        return jnp.mean(forward(Model(FAMILIES[name], execution=execution), params, batch) ** 2)

    return jax.jit(jax.value_and_grad(loss))(parameters(name))


@pytest.mark.parametrize("name", rest_slow(FAMILIES))
@pytest.mark.parametrize(
    "execution", [Execution(unroll=0), Execution(remat="full"), Execution(remat="dots")], ids=str
)
def test_execution_changes_nothing_but_float_order(name, execution):
    want, want_gradient = loss_and_gradient(name, Execution())
    got, gradient = loss_and_gradient(name, execution)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    # Some gradients are zero but for rounding (key biases), so the scale is that of all of them.
    scale = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(want_gradient))
    for path, leaf in tree.paths(gradient).items():
        np.testing.assert_allclose(
            leaf, tree.paths(want_gradient)[path], atol=2e-5 * scale, err_msg=path
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_used(name):
    batch, model = random_batch(2, LENGTH), Model(FAMILIES[name])

    def loss(params):
        hidden_BTD, _ = model.hidden(params, batch)
        total = jnp.sum(jnp.sin(model.logits(params, hidden_BTD)))
        return total + (jnp.sum(model.pooled(params, hidden_BTD)) if model.config.pooler else 0.0)

    gradient = tree.paths(jax.jit(jax.grad(loss))(parameters(name)))
    # Key biases shift all scores of a query alike, which softmax does not see, and a router's bias
    # chooses without a gradient; without them, all must matter.
    unused = [
        p
        for p, g in gradient.items()
        if not np.any(np.abs(g) > 1e-7) and not p.endswith(("key_bias", "router_bias"))
    ]
    assert unused == []


@pytest.mark.parametrize("name", ["gpt2", "t5_small"])
def test_dropout_needs_a_key_and_follows_it(name):
    batch, params = random_batch(2, LENGTH), parameters(name)
    model = Model(replace(FAMILIES[name], dropout=0.5))
    plain = forward(model, params, batch)
    np.testing.assert_array_equal(plain, forward(Model(FAMILIES[name]), params, batch))
    first, again, other = (
        forward(model, params, batch, jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other) and not np.allclose(first, plain)


def test_bfloat16_stays_bfloat16_and_close():
    batch, params, c = random_batch(2, LENGTH), parameters("llama2_7b"), FAMILIES["llama2_7b"]
    model = Model(c, Precision(compute="bfloat16"))
    hidden_BTD, _ = model.hidden(params, batch)
    assert hidden_BTD.dtype == jnp.bfloat16
    want, _ = Model(c).hidden(params, batch)
    # bfloat16 has 8 bits: a few roundings of 2^-9 each on states of norm 1.
    assert np.mean(np.abs(hidden_BTD.astype(jnp.float32) - want)) < 0.03


@pytest.mark.parametrize("name", ["gpt2", "gemma2_2b", "t5_small"])
def test_states_and_the_stack_over_them_are_the_forward_pass(name):
    # With dropout, whose masks both draw from the key of the whole.
    model = Model(replace(FAMILIES[name], dropout=0.5))
    batch, params, key = random_batch(2, LENGTH), parameters(name), jax.random.key(1)
    memory, decoder_key = None, jax.random.split(key)[1]
    if model.config.kind == "encoder_decoder":
        memory = model.encode(params, batch, jax.random.split(key)[0])
    states_BTD = model.states(params, batch, decoder_key)
    got, _, _ = model.run(params, states_BTD, batch, memory=memory, key=decoder_key)
    np.testing.assert_array_equal(got, model.hidden(params, batch, key)[0])


def test_soft_tokens_are_states_like_those_of_words():
    # States from anywhere, here of words mixed half and half, pass through where ids could not.
    model, params, batch = Model(FAMILIES["llama2_7b"]), parameters("llama2_7b"), random_batch(1, 4)
    other = {**batch, "inputs": batch["inputs"][:, ::-1]}
    mixed_BTD = (model.states(params, batch) + model.states(params, other)) / 2
    table = params["embed"]["table"]
    rows = (table[batch["inputs"][0]] + table[other["inputs"][0]]) / 2
    changed = {**params, "embed": {"table": table.at[:4].set(rows)}}
    ids = {**batch, "inputs": jnp.arange(4, dtype=jnp.int32)[None]}
    want, _ = model.hidden(changed, ids)
    np.testing.assert_array_equal(model.run(params, mixed_BTD, batch)[0], want)


@pytest.mark.parametrize("name", ["gemma2_2b", "gemma3_1b", "qwen3_8b"])
def test_layers_one_by_one_are_the_stack(name):
    model, params, batch = Model(FAMILIES[name]), parameters(name), random_batch(2, LENGTH)
    x_BTD = model.states(params, batch)
    for index in range(model.config.layers):
        kind = layer_kind(model.config, index)
        x_BTD = model.layer(layer_of(params["layers"], index), x_BTD, batch, kind)
    got = layers.norm(params["final_norm"], x_BTD, model.config)
    # The same products, compiled one by one and in a scan.
    np.testing.assert_allclose(got, model.hidden(params, batch)[0], atol=2e-5)


@pytest.mark.parametrize("name", ["gemma2_2b", "gemma3_1b"])
def test_only_global_layers_see_beyond_the_window(name):
    c, batch, params = FAMILIES[name], random_batch(1, LENGTH), parameters(name)
    batch["segments"], batch["positions"] = (
        np.ones((1, LENGTH), np.int32),
        np.arange(LENGTH, dtype=np.int32)[None],
    )
    model = Model(c)
    x_BTD = model.states(params, batch)
    p = layer_of(params["layers"], 0)
    for kind, reach in (("local", c.window), ("global", LENGTH)):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(model.layer(p, x, batch, kind)[0, -1])))
        seen = np.any(np.asarray(gradient(x_BTD))[0] != 0, axis=1)
        np.testing.assert_array_equal(seen, np.arange(LENGTH) >= LENGTH - reach)
