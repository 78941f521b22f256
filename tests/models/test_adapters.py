"""Bottlenecks, prefixes and prompts: whatever the family, packed or alone, whole or token by token."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from research import tree
from research.axes import partition
from research.mesh import make_mesh
from research.models import adapters
from research.models.config import Execution
from research.models.model import Model, forward
from research.models.spec import initialize, shardings
from tests.families import DECODERS, FAMILIES, random_batch
from tests.weights.test_parity import GOLDEN, MODEL, batch, params  # noqa: F401

LENGTH, VIRTUAL = 12, 3
MAKERS = {
    "houlsby": lambda c: adapters.bottleneck_specs(c, 4, "houlsby"),
    "pfeiffer": lambda c: adapters.bottleneck_specs(c, 4, "pfeiffer"),
    "prefix": lambda c: adapters.prefix_specs(c, VIRTUAL),
    "prompt": lambda c: adapters.prompt_specs(c, VIRTUAL),
}
CASES = [(name, kind) for name in FAMILIES for kind in MAKERS if kind != "prompt" or name in DECODERS]


@cache
def base(name):
    """Random parameters of a family, biases and norms included."""
    return noisy(initialize(jax.random.key(0), Model(FAMILIES[name]).specs(), jnp.float32), 0.1)


def noisy(tree_, scale):
    """A tree with normal noise of this scale on every leaf."""
    leaves, structure = jax.tree.flatten(tree_)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten([w + scale * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves)])


def drawn(name, kind):
    """Fresh adapters of a kind for a family."""
    return initialize(jax.random.key(2), MAKERS[kind](FAMILIES[name]), jnp.float32)


def adapted(name, kind, scale=0.5):
    """The family's parameters with adapters that do something."""
    return tree.join(base(name), noisy(drawn(name, kind), scale))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("placement", adapters.PLACEMENTS)
def test_a_fresh_bottleneck_changes_nothing_and_stands_where_its_paper_puts_it(name, placement):
    model, fresh = Model(FAMILIES[name]), drawn(name, placement)
    owners = {path.split("/")[-2] for path in tree.paths(fresh)}
    cross = {"cross_adapter"} if FAMILIES[name].kind == "encoder_decoder" else set()
    assert owners == ({"mlp_adapter"} if placement == "pfeiffer" else {"attention_adapter", "mlp_adapter"} | cross)
    rows = random_batch(2, LENGTH)
    got = forward(model, tree.join(base(name), fresh), rows)
    np.testing.assert_array_equal(got, forward(model, base(name), rows))


def test_a_bottleneck_is_the_formula_of_its_paper():
    rng = np.random.default_rng(0)
    sizes = {"down": (8, 3), "down_bias": (3,), "up": (3, 8), "up_bias": (8,)}
    p, y = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}, rng.normal(size=(2, 5, 8))
    want = y + np.maximum(y @ p["down"] + p["down_bias"], 0) @ p["up"] + p["up_bias"]
    got = adapters.bottleneck(jax.tree.map(jnp.asarray, p), jnp.asarray(y, jnp.float32), jax.nn.relu)
    np.testing.assert_allclose(got, want, atol=1e-5)  # float32 sums of 8 and of 3 terms against float64


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_packing_two_documents_equals_each_alone(name, kind):
    rows, model, tuned = random_batch(1, LENGTH), Model(FAMILIES[name]), adapted(name, kind)
    packed = np.asarray(forward(model, tuned, rows))
    assert packed.shape[1] == LENGTH
    assert np.abs(packed - forward(model, base(name), rows)).max() > 0.01
    for segment in (1, 2):
        own = rows["segments"][0] == segment
        alone = forward(model, tuned, {field: x[:, own] for field, x in rows.items()})
        # Masked keys add exact zeros; what is left is the order of additions.
        np.testing.assert_allclose(packed[:, own], alone, atol=2e-5)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["llama2_7b", "gpt2"])
def test_padding_changes_nothing(name, kind):
    rows, model, tuned = random_batch(1, LENGTH), Model(FAMILIES[name]), adapted(name, kind)
    first = {field: x[:, :5] for field, x in rows.items()}
    padded = {**rows, "segments": np.where(np.arange(LENGTH) < 5, 1, 0)[None].astype(np.int32)}
    got = forward(model, tuned, padded)
    np.testing.assert_allclose(got[:, :5], forward(model, tuned, first), atol=2e-5)  # the order of additions
    assert np.isfinite(got).all()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scanned_unrolled_and_apart_are_the_same(name, kind):
    rows, tuned = random_batch(2, LENGTH), adapted(name, kind)
    want = forward(Model(FAMILIES[name]), tuned, rows)
    got = forward(Model(FAMILIES[name], execution=Execution(unroll=0)), tuned, rows)
    np.testing.assert_allclose(got, want, atol=2e-5)  # float order
    split = {**tuned, "layers": tuple(jax.tree.map(lambda w: w[i], tuned["layers"]) for i in range(2))}
    np.testing.assert_allclose(forward(Model(FAMILIES[name]), split, rows), want, atol=2e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["houlsby", "prefix", "prompt"])
def test_token_by_token_equals_all_at_once(name, kind):
    model, tuned = Model(FAMILIES[name]), adapted(name, kind)
    ids = random_batch(1, LENGTH)["inputs"]
    positions = np.arange(LENGTH, dtype=np.int32)[None]
    rows = {"inputs": ids, "positions": positions, "segments": np.ones_like(ids)}
    want, _ = model.hidden(tuned, rows)
    ready = model.prompted(tuned)
    kv, at = model.make_cache(1, LENGTH, 4), 0
    for size in (4, 4, 1, 1, 1, 1):
        part = {field: x[:, at : at + size] for field, x in rows.items()}
        # With the prompt as it is, and read beforehand.
        x_BTD, kv = model.decode(tuned if at == 4 else ready, part, kv)
        np.testing.assert_allclose(x_BTD, want[:, at : at + size], atol=5e-5)  # float order, states of norm 1
        at += size


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_a_window_leaves_virtual_tokens_behind_as_any_other(kind):
    # A model without layers that reach further: one layer, window 5, so token t sees positions above t - 2.
    c = replace(FAMILIES["mistral_7b"], layers=1)
    model = Model(c)
    weights = noisy(initialize(jax.random.key(0), model.specs(), jnp.float32), 0.1)
    fresh = initialize(jax.random.key(2), MAKERS[kind](c), jnp.float32)
    ids = random_batch(1, LENGTH)["inputs"]
    rows = {"inputs": ids, "positions": np.arange(LENGTH, dtype=np.int32)[None], "segments": np.ones_like(ids)}

    def at(trained, position):
        return jnp.sum(jnp.sin(model.hidden(tree.join(weights, trained), rows)[0][0, position]))

    seen = [
        any(np.any(leaf != 0) for leaf in jax.tree.leaves(jax.grad(at)(fresh, position))) for position in range(LENGTH)
    ]
    # The last virtual token stands at 2, the text from 3 on: up to position 2 + 4 it is seen.
    assert seen == [position + VIRTUAL <= VIRTUAL - 1 + c.window - 1 for position in range(LENGTH)]


def test_prompt_tuning_is_pefts(params):  # noqa: F811
    table = jnp.asarray(GOLDEN["p_prompt/prompt_encoder.default.embedding.weight"])
    got = forward(MODEL, {**params, "prompt": {"table": table}}, batch())
    # peft's own logits before and after a merge differ by 7e-6 to 2e-5.
    np.testing.assert_allclose(got, GOLDEN["logits/p_prompt"][:, 5:], atol=5e-5)


def test_prefix_tuning_is_pefts(params):  # noqa: F811
    flat = GOLDEN["p_prefix/prompt_encoder.default.embedding.weight"].reshape(5, 2, 2, 2, 16)
    keys, values = (jnp.asarray(np.moveaxis(flat[:, :, side], 1, 0)) for side in range(2))
    np.testing.assert_allclose(
        forward(MODEL, adapters.add_prefix(params, keys, values), batch()), GOLDEN["logits/p_prefix"], atol=5e-5
    )


@pytest.mark.parametrize("at", ["data:2,fsdp:2,tensor:2", "fsdp:2,context:2,tensor:2"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_mesh_changes_where_the_gradients_are_and_not_what(kind, at):
    model, trained = Model(FAMILIES["llama3_405b"]), noisy(drawn("llama3_405b", kind), 0.5)
    rows = {field: random_batch(4, LENGTH)[field] for field in ("inputs", "positions", "segments")}

    def loss(trained, params, rows):
        return jnp.mean(jnp.sin(forward(model, tree.join(params, trained), rows)))

    want = jax.jit(jax.grad(loss))(trained, base("llama3_405b"), rows)
    mesh = make_mesh(at)
    with jax.set_mesh(mesh):
        places = [shardings(specs, mesh) for specs in (MAKERS[kind](model.config), model.specs())]
        there = jax.device_put((trained, base("llama3_405b")), tuple(places))
        rows = jax.device_put(rows, NamedSharding(mesh, partition(("batch", "length"), (4, LENGTH), mesh)))
        got = jax.jit(jax.grad(loss))(*there, rows)
    for path, leaf in tree.paths(want).items():
        # Float order alone differs.
        np.testing.assert_allclose(tree.paths(got)[path], leaf, atol=1e-6, rtol=1e-4, err_msg=path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: adapters.prompt_specs(FAMILIES["bert_base"], 3), "take a prefix"),
        (lambda: adapters.prefix_specs(FAMILIES["gpt2"], 0), "must be positive"),
        (lambda: adapters.bottleneck_specs(FAMILIES["gpt2"], 33), "1..32"),
        (lambda: adapters.bottleneck_specs(FAMILIES["gpt2"], 4, "parallel"), "houlsby, pfeiffer"),
        (lambda: run("gpt2", {"prompt": {"table": jnp.zeros((3, 16))}}), "prompt/table .* made for another model"),
        (lambda: run("bert_base", {"prompt": {"table": jnp.zeros((3, 32))}}), "take a prefix"),
        (lambda: run("gpt2", prefix(3, 2, 8)), "prefix_key .* made for another model"),
        (lambda: run("gpt2", {**prefix(3, 4, 8), "prompt": {"table": jnp.zeros((3, 32))}}), "take one of the two"),
        (lambda: run("gpt2", prefix(21, 4, 8)), "21 virtual tokens and 12 of a text are over the 32 positions"),
        (lambda: run("gpt2", prefix(3, 4, 8), attention="splash"), "seen by every document"),
    ],
)
def test_what_does_not_fit_says_what_to_do(make, says):
    with pytest.raises((ValueError, NotImplementedError), match=says):
        make()


def prefix(*sizes):
    """A prefix of two layers, zeros of these sizes a layer."""
    return {"layers": {"attention": {name: jnp.zeros((2, *sizes)) for name in ("prefix_key", "prefix_value")}}}


def run(name, more, **execution):
    """A family's logits with more parameters."""
    return forward(Model(FAMILIES[name], execution=Execution(**execution)), tree.join(base(name), more), random_batch(1, LENGTH))
