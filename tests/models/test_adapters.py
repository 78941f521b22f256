"""Bottlenecks, prefixes and prompts: whatever the family, packed or alone, whole or token by
token."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from research import tree
from research.data.tokenizers import load_tokenizer
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.models import adapters
from research.models.config import Execution
from research.models.linen import Transformer
from research.models.model import Model, forward
from research.models.spec import initialize, ones, shardings
from research.parallel.axes import RULES, partition
from research.parallel.mesh import make_mesh
from research.weights.rules import attach
from tests.families import FAMILIES, random_batch
from tests.weights.test_parity import GOLDEN, MODEL, batch, params  # noqa: F401

LENGTH, VIRTUAL = 12, 3
FIELDS = ("inputs", "positions", "segments")
# Bottlenecks and a prefix do not touch each other, and a model of both compiles once.
MAKERS = {
    "houlsby and prefix": lambda c: attach(
        adapters.bottleneck_specs(c, 4, "houlsby"), adapters.prefix_specs(c, VIRTUAL)
    ),
    "prompt": lambda c: adapters.prompt_specs(c, VIRTUAL),
}
KINDS = tuple(MAKERS)
# Latents have no keys of heads for a prefix.
MAKERS["houlsby"] = lambda c: adapters.bottleneck_specs(c, 4, "houlsby")
logits = partial(jax.jit, static_argnums=0)(forward)


@cache
def base(name):
    """Random parameters of a family, biases and norms included."""
    return drawn(Model(FAMILIES[name]).specs(), 0.15)


def drawn(specs, scale):
    """Parameters with normal noise of this scale, around 1 where they start there."""
    rng = np.random.default_rng(1)

    def one(spec):
        return jnp.asarray((spec.init is ones) + scale * rng.normal(size=spec.shape), jnp.float32)

    return jax.tree.map(one, specs)


def trained(name, kind):
    """Adapters of a kind for a family that do something."""
    return drawn(MAKERS[kind](FAMILIES[name]), 0.5)


def adapted(name, kind):
    """The family's parameters with them."""
    return attach(base(name), trained(name, kind))


def one_text(name):
    """A row of one document."""
    ids = random_batch(1, LENGTH)["inputs"]
    return {
        "inputs": ids,
        "positions": np.arange(LENGTH, dtype=np.int32)[None],
        "segments": np.ones_like(ids),
    }


@pytest.mark.parametrize("name", ["gpt2", "t5_small"])
def test_fresh_bottlenecks_change_nothing(name):
    model, fresh = Model(FAMILIES[name]), adapters.bottleneck_specs(FAMILIES[name], 4, "houlsby")
    rows, both = (
        random_batch(2, LENGTH),
        attach(base(name), initialize(jax.random.key(2), fresh, jnp.float32)),
    )
    np.testing.assert_array_equal(logits(model, both, rows), logits(model, base(name), rows))


@pytest.mark.parametrize(("name", "kind"), [("t5_small", KINDS[0]), ("gpt2", "prompt")])
def test_every_parameter_is_used(name, kind):
    model, weights, rows = Model(FAMILIES[name]), base(name), random_batch(2, LENGTH)

    def total(trained):
        return jnp.sum(jnp.sin(forward(model, attach(weights, trained), rows)))

    gradient = tree.paths(jax.jit(jax.grad(total))(trained(name, kind)))
    assert [path for path, leaf in gradient.items() if not np.any(np.abs(leaf) > 1e-6)] == []


def test_bottlenecks_stand_where_their_papers_put_them():
    def parts(name, placement):
        return {
            path.rsplit("/", 1)[0]
            for path in tree.paths(adapters.bottleneck_specs(FAMILIES[name], 4, placement))
        }

    assert parts("gpt2", "pfeiffer") == {"layers/mlp_adapter"}
    assert parts("gpt2", "houlsby") == {"layers/attention_adapter", "layers/mlp_adapter"}
    assert parts("t5_small", "houlsby") == {
        *(f"layers/{part}_adapter" for part in ("attention", "cross", "mlp")),
        *(f"encoder/layers/{part}_adapter" for part in ("attention", "mlp")),
    }


def test_a_bottleneck_is_the_formula_of_its_paper():
    rng = np.random.default_rng(0)
    sizes = {"down": (8, 3), "down_bias": (3,), "up": (3, 8), "up_bias": (8,)}
    p, y = (
        {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()},
        rng.normal(size=(2, 5, 8)),
    )
    want = y + np.maximum(y @ p["down"] + p["down_bias"], 0) @ p["up"] + p["up_bias"]
    got = adapters.bottleneck(
        jax.tree.map(jnp.asarray, p), jnp.asarray(y, jnp.float32), jax.nn.relu
    )
    np.testing.assert_allclose(
        got, want, atol=1e-5
    )  # float32 sums of 8 and of 3 terms against float64


PROMPTED = ("gpt2", "mistral_7b", "mixtral_8x7b")
CASES = [
    *((name, KINDS[0]) for name, c in FAMILIES.items() if not c.kv_latent),
    *((name, "prompt") for name in PROMPTED),
    pytest.param("deepseek_v3", "houlsby", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_documents_of_a_packed_row_are_what_each_is_alone_before_padding(name, kind):
    packed = random_batch(1, LENGTH)
    rows = {field: np.repeat(x, 3, axis=0) for field, x in packed.items()}
    for row, segment in ((1, 1), (2, 2)):
        for side in ("", "encoder_"):
            own = packed[f"{side}segments"][0] == segment
            for field in FIELDS:
                values = packed[f"{side}{field}"][0][own]
                values = np.ones_like(values) if field == "segments" else values
                rows[f"{side}{field}"][row] = np.pad(values, (0, LENGTH - len(values)))
    got = np.asarray(logits(Model(FAMILIES[name]), adapted(name, kind), rows))
    assert got.shape[1] == LENGTH and np.isfinite(got).all()
    for row, segment in ((1, 1), (2, 2)):
        own = packed["segments"][0] == segment
        # Masked keys add exact zeros; what is left is the order of additions.
        np.testing.assert_allclose(got[0, own], got[row, : own.sum()], atol=2e-5)


@pytest.mark.parametrize(("name", "kind"), [("llama3_405b", "prompt"), ("t5_small", KINDS[0])])
def test_scanned_unrolled_and_apart_are_the_same(name, kind):
    rows, tuned, model = random_batch(2, LENGTH), adapted(name, kind), Model(FAMILIES[name])
    want = logits(model, tuned, rows)
    # Float order alone differs.
    np.testing.assert_allclose(
        logits(replace(model, execution=Execution(unroll=0)), tuned, rows), want, atol=2e-5
    )
    apart = {
        **tuned,
        "layers": tuple(jax.tree.map(lambda w: w[i], tuned["layers"]) for i in range(2)),
    }
    np.testing.assert_allclose(logits(model, apart, rows), want, atol=2e-5)


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "prompt"), ("mistral_7b", KINDS[0])])
def test_a_few_tokens_at_a_time_are_all_at_once(name, kind):
    model, tuned, rows = Model(FAMILIES[name]), adapted(name, kind), one_text(name)
    want, _ = jax.jit(model.hidden)(tuned, rows)
    decode, ready, kv = (
        jax.jit(model.decode),
        jax.jit(model.prompted)(tuned),
        model.make_cache(1, LENGTH, 4),
    )
    assert "prompt" not in ready
    for at in range(0, LENGTH, 4):
        part = {field: x[:, at : at + 4] for field, x in rows.items()}
        # The prompt as it is and read beforehand are the same.
        x_BTD, kv = decode(ready if at else tuned, part, kv)
        np.testing.assert_allclose(
            x_BTD, want[:, at : at + 4], atol=5e-5
        )  # float order, states of norm 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_is_what_the_whole_text_makes_likely(kind):
    tokenizer = load_tokenizer("bytes")
    model = Model(replace(FAMILIES["gpt2"], vocab_size=tokenizer.vocab_size))
    tuned = attach(drawn(model.specs(), 0.15), drawn(MAKERS[kind](model.config), 0.5))
    prompts = [[5, 9, 3, 7, 11, 20], [1, 2]]
    for one in generate(
        model, tuned, tokenizer, prompts, SamplingConfig(temperature=0, max_tokens=100)
    ):
        ids = np.array([[*one.prompt, *one.token_ids]], np.int32)
        # Of the table's 32 positions, the virtual tokens take theirs.
        assert ids.shape[1] == 32 - VIRTUAL or one.finish == "eos"
        rows = {
            "inputs": ids,
            "positions": np.arange(ids.shape[1], dtype=np.int32)[None],
            "segments": np.ones_like(ids),
        }
        told = np.asarray(logits(model, tuned, rows))[0, len(one.prompt) - 1 : -1]
        chosen = np.take_along_axis(told, np.array(one.token_ids)[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(
            chosen, told.max(axis=1), atol=5e-5
        )  # float order may break a tie otherwise


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_leaves_virtual_tokens_behind_as_any_other(kind):
    c = replace(FAMILIES["mistral_7b"], layers=1)  # of which no token sees further than the window
    model = Model(c)
    weights = drawn(model.specs(), 0.15)
    specs = (
        adapters.prompt_specs(c, VIRTUAL) if kind == "prompt" else adapters.prefix_specs(c, VIRTUAL)
    )

    @jax.jit
    @jax.grad
    def seen_by(virtual, position):
        return jnp.sum(
            jnp.sin(model.hidden(attach(weights, virtual), one_text("mistral_7b"))[0][0, position])
        )

    virtual = drawn(specs, 0.5)
    got = [
        any(np.any(leaf != 0) for leaf in jax.tree.leaves(seen_by(virtual, at)))
        for at in range(LENGTH)
    ]
    # The last virtual token stands next to the text's first, which sees it, as do the window - 2
    # after that.
    assert got == [at < c.window - 1 for at in range(LENGTH)]


def test_prompt_tuning_is_pefts(params):  # noqa: F811
    table = jnp.asarray(GOLDEN["p_prompt/prompt_encoder.default.embedding.weight"])
    got = logits(MODEL, {**params, "prompt": {"table": table}}, batch())
    # peft's own logits before and after a merge differ by 7e-6 to 2e-5.
    np.testing.assert_allclose(got, GOLDEN["logits/p_prompt"][:, 5:], atol=5e-5)


def test_linen_passes_on_what_the_model_does_not_declare():
    model, tuned, rows = Model(FAMILIES["gpt2"]), adapted("gpt2", "prompt"), one_text("gpt2")
    got = jax.jit(Transformer(model).apply)({"params": tuned}, rows)
    np.testing.assert_array_equal(got, logits(model, tuned, rows))


def test_prefix_tuning_is_pefts(params):  # noqa: F811
    flat = GOLDEN["p_prefix/prompt_encoder.default.embedding.weight"].reshape(5, 2, 2, 2, 16)
    keys, values = (jnp.asarray(np.moveaxis(flat[:, :, side], 1, 0)) for side in range(2))
    got = logits(MODEL, adapters.add_prefix(params, keys, values), batch())
    np.testing.assert_allclose(got, GOLDEN["logits/p_prefix"], atol=5e-5)


def test_a_mesh_changes_where_the_gradients_are_and_not_what():
    # A prompt becomes a prefix on the way.
    name, c = "llama3_405b", FAMILIES["llama3_405b"]
    model, specs = (
        Model(c),
        attach(adapters.bottleneck_specs(c, 4, "houlsby"), adapters.prompt_specs(c, VIRTUAL)),
    )
    mine = drawn(specs, 0.5)
    rows = {field: random_batch(4, LENGTH)[field] for field in FIELDS}

    def loss(trained, params, rows):  # noqa: F811
        return jnp.mean(jnp.sin(forward(model, attach(params, trained), rows)))

    want = jax.jit(jax.grad(loss))(mine, base(name), rows)
    mesh = make_mesh("fsdp:2,context:2,tensor:2")
    with jax.set_mesh(mesh):
        places = tuple(shardings(each, mesh, RULES) for each in (specs, model.specs()))
        there = jax.device_put((mine, base(name)), places)
        rows = jax.device_put(
            rows, NamedSharding(mesh, partition(("batch", "length"), (4, LENGTH), mesh, RULES))
        )
        got = tree.paths(jax.jit(jax.grad(loss))(*there, rows))
    for path, leaf in tree.paths(want).items():
        # Float order alone differs.
        np.testing.assert_allclose(got[path], leaf, atol=1e-6, rtol=1e-4, err_msg=path)


def prefix(*sizes):
    """A prefix of two layers, zeros of these sizes a layer."""
    return {
        "layers": {
            "attention": {name: jnp.zeros((2, *sizes)) for name in ("prefix_key", "prefix_value")}
        }
    }


def prompt(*sizes):
    """A prompt of zeros."""
    return {"prompt": {"table": jnp.zeros(sizes)}}


def run(name, more, **execution):
    """A family's logits with more parameters."""
    model = Model(FAMILIES[name], execution=Execution(**execution))
    return logits(model, attach(base(name), more), random_batch(1, LENGTH))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: adapters.prompt_specs(FAMILIES["bert_base"], 3), "take a prefix"),
        (lambda: adapters.prefix_specs(FAMILIES["gpt2"], 0), "must be positive"),
        (lambda: adapters.prefix_specs(FAMILIES["deepseek_v3"], 3), "take lora or a bottleneck"),
        (lambda: adapters.prompt_specs(FAMILIES["deepseek_v3"], 3), "take lora or a bottleneck"),
        (lambda: run("deepseek_v3", prefix(3, 4, 12)), "take lora or a bottleneck"),
        (lambda: adapters.bottleneck_specs(FAMILIES["gpt2"], 33), "1..32"),
        (lambda: adapters.bottleneck_specs(FAMILIES["gpt2"], 4, "parallel"), "houlsby, pfeiffer"),
        (lambda: run("gpt2", prompt(3, 16)), "prompt/table .* made for another model"),
        (lambda: run("bert_base", prompt(3, 32)), "take a prefix"),
        (lambda: run("gpt2", prefix(3, 2, 8)), "prefix_key .* made for another model"),
        (lambda: run("gpt2", {**prefix(3, 4, 8), **prompt(3, 32)}), "take one of the two"),
        (
            lambda: run("gpt2", prefix(21, 4, 8)),
            "21 virtual tokens and 12 of a text are over the 32 positions",
        ),
        (lambda: run("gpt2", prefix(3, 4, 8), attention="splash"), "seen by every document"),
    ],
)
def test_what_does_not_fit_says_what_to_do(make, says):
    with pytest.raises(ValueError, match=says):
        make()
