"""Several adapters of one model: switched, mixed in a batch, merged."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from research import tree
from research.models.model import Model, forward
from research.models.spec import initialize, shardings
from research.parallel.axes import RULES, partition
from research.parallel.mesh import make_mesh
from research.tuning.adapter_bank import AdapterBank, bank, select
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.tuning.multi_adapter import alike, combine
from research.weights.lora import LoraAdapter
from research.weights.quantized import quantize_array
from research.weights.rules import attach, is_leaf, quantize
from tests.families import FAMILIES, random_batch

GOLDEN = np.load(Path(__file__).parent / "golden_several.npz")
MODEL = Model(replace(FAMILIES["llama2_7b"], tied=True))
SPECS = MODEL.specs()


def adapter(seed, targets, specs=SPECS, **fields):
    """An adapter that does something."""
    made = initialize(
        jax.random.key(seed), lora_specs(specs, LoraConfig(targets=targets, **fields)), jnp.float32
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(np.abs(x + 0.1 * rng.normal(size=x.shape)), jnp.float32), made
    )


@pytest.fixture(scope="module")
def params():
    """A small model's."""
    return initialize(jax.random.key(0), SPECS, jnp.float32)


THREE = (
    dict(targets="query|out|up|down|embed/table", rank=4, alpha=4.0),
    dict(targets="query|down", rank=2, alpha=16.0),
    dict(targets="key|down", rank=3, alpha=1.0),
)


@pytest.fixture(scope="module")
def three():
    """Adapters of other ranks, scales and targets."""
    return [adapter(seed, **fields) for seed, fields in enumerate(THREE, 1)]


def test_adapters_of_other_ranks_and_targets_take_one_trace(params, three):
    traces, rows = [], random_batch(2, 8)

    @jax.jit
    def logits(adapters):
        traces.append(1)
        return forward(MODEL, attach(params, adapters), rows)

    for own, same in zip(three, alike(three)):
        want = forward(MODEL, attach(params, own), rows)
        np.testing.assert_allclose(logits(same), want, atol=2e-5)  # zeros added, in another order
    assert len(traces) == 1
    wide = alike(three, rank=8)
    assert all(leaf.a.shape[-1] == 8 for leaf in tree.paths(wide[0], is_leaf).values())
    np.testing.assert_allclose(logits(wide[1]), logits(alike(three)[1]), atol=2e-5)


@pytest.mark.parametrize("format", [None, "nf4"])
def test_each_row_of_a_batch_has_its_own_adapter(params, three, format):
    rows, index = random_batch(5, 8), np.array([2, 0, -1, 1, 0])
    if format:
        params = quantize(
            params, SPECS, [(r"layers/attention/\w+", format), (".*", None)], group=32
        )
    logits = jax.jit(lambda params, rows: forward(MODEL, params, rows))
    mixed = bank(params, three, index)
    got = logits(mixed, rows)
    for row, number in enumerate(index):
        own = params if number < 0 else attach(params, three[number])
        want = logits(own, {name: x[row : row + 1] for name, x in rows.items()})
        np.testing.assert_allclose(
            got[row], want[0], atol=3e-5
        )  # float order, logits of some tenths
    before = logits._cache_size()
    turned = logits(select(mixed, index[::-1].copy()), {name: x[::-1] for name, x in rows.items()})
    np.testing.assert_allclose(turned[::-1], got, atol=1e-6)
    assert logits._cache_size() == before


def test_each_token_of_a_row_has_its_own_adapter(params, three):
    rows = random_batch(3, 8)
    index = np.array([2, -1, 1])
    logits = jax.jit(lambda params, rows: forward(MODEL, params, rows))
    want = logits(bank(params, three, index), rows)
    by_token = np.repeat(index[:, None], rows["inputs"].shape[1], axis=1)
    got = logits(bank(params, three, by_token), rows)
    np.testing.assert_allclose(got, want, atol=3e-5)  # float order, logits of some tenths


def test_dora_beside_lora_in_a_bank(params):
    both = [adapter(1, "query|down", rank=4, decompose=True), adapter(2, "query|out", rank=2)]
    rows, index = random_batch(3, 8), jnp.array([1, 0, -1])
    logits = jax.jit(lambda params, rows: forward(MODEL, params, rows))
    got = logits(bank(params, both, index), rows)
    for row, number in enumerate(index):
        own = params if number < 0 else attach(params, both[number])
        want = logits(own, {name: x[row : row + 1] for name, x in rows.items()})
        np.testing.assert_allclose(got[row], want[0], atol=3e-5)  # float order


def test_the_base_is_contracted_once_and_no_dense_adapter_is_made():
    w = quantize_array(jax.random.normal(jax.random.key(0), (64, 32)), "int8", inputs=1)
    leaf = AdapterBank(
        w, jnp.ones((3, 64, 2)), jnp.ones((3, 2, 32)), jnp.ones(3), None, jnp.array([0, 2])
    )
    jaxpr = str(jax.make_jaxpr(lambda x: leaf.einsum("BTD,DF->BTF", x))(jnp.ones((2, 5, 64))))
    assert jaxpr.count("dot_general") == 3  # the base, a and b
    assert leaf.shape == (64, 32) and leaf.nbits() > w.nbits()


def test_a_mesh_changes_nothing(params, three):
    mesh, rows, index = (
        make_mesh("fsdp:4,tensor:2"),
        random_batch(8, 8),
        np.array([2, 0, -1, 1, 0, 1, 2, -1]),
    )
    want = np.asarray(forward(MODEL, bank(params, three, index), rows))
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, partition(("batch",), (8,), mesh, RULES))
        rows = jax.device_put(
            rows, NamedSharding(mesh, partition(("batch", "length"), (8, 8), mesh, RULES))
        )
        held = jax.device_put(params, shardings(SPECS, mesh, RULES))
        own = [lora_specs(SPECS, LoraConfig(**fields)) for fields in THREE]
        three = jax.device_put(three, [shardings(specs, mesh, RULES) for specs in own])
        logits = jax.jit(
            lambda params, three, index, rows: forward(MODEL, bank(params, three, index), rows)
        )
        got = logits(held, three, jax.device_put(index, where), rows)
    np.testing.assert_allclose(got, want, atol=3e-5)  # float order


@pytest.mark.parametrize(
    ("case", "how"), [("linear", {}), ("cat", {}), ("svd", {}), ("svd3", {"rank": 3})]
)
@pytest.mark.parametrize("module", ["linear", "table"])
def test_weighted_merges_are_pefts(case, how, module):
    table, own = module == "table", []
    for number in range(2):
        a, b = (GOLDEN[f"{case}/{module}/{number}/{side}"] for side in "ab")
        scale = jnp.full(2, GOLDEN[f"{case}/{module}/scale"][number])
        # Stacked twice, as layers are; peft's A of a table has the rows.
        first, second = (b, a) if table else (a.T, b.T)
        own.append(
            {
                "w": LoraAdapter(
                    *(jnp.asarray(np.stack([x, x])) for x in (first, second)), scale, table=table
                )
            }
        )
    made = combine(own, [0.7, -0.4], case.removesuffix("3"), **how)["w"]
    assert made.a.shape[-1] == {"linear": 4, "cat": 6, "svd": 4, "svd3": 3}[case]
    update = np.asarray(made.a[1] @ made.b[1]) * float(made.scale[1])
    # Singular vectors of float32 of updates of some tens.
    np.testing.assert_allclose(
        update if not table else update.T,
        GOLDEN[f"{case}/{module}/delta"].T if not table else GOLDEN[f"{case}/{module}/delta"],
        atol=5e-5,
    )


def test_a_merge_by_cat_is_the_sum_of_what_the_adapters_do(three):
    made, weights = combine(three, [0.5, 2.0, -1.0], "cat"), [0.5, 2.0, -1.0]
    for path, leaf in tree.paths(made, is_leaf).items():
        zero = jnp.zeros(tree.paths(SPECS)[path].shape)
        want = sum(
            weight * attach({"w": zero}, {"w": tree.paths(one, is_leaf)[path]})["w"].dense()
            for weight, one in zip(weights, three)
            if path in tree.paths(one, is_leaf)
        )
        np.testing.assert_allclose(
            attach({"w": zero}, {"w": leaf})["w"].dense(), want, atol=1e-5
        )  # float order


NARROW = Model(replace(MODEL.config, d_model=16)).specs()
MOE = Model(FAMILIES["mixtral_8x7b"]).specs()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p, a: alike(a, rank=2), "rank=2 is below the 4 of an adapter of"),
        (
            lambda p, a: alike([a[0], adapter(4, "query", decompose=True)]),
            r"layers/attention/query has a magnitude",
        ),
        (lambda p, a: alike([a[0], adapter(4, "query", NARROW)]), "different models"),
        (lambda p, a: combine([a[0], adapter(4, "query", NARROW)], [1, 1]), "different models"),
        (lambda p, a: bank(p["embed"], a, jnp.array([0])), "made for another model"),
        (lambda p, a: bank(p, a, jnp.array([3])), "none of 3 adapters"),
        (lambda p, a: select(bank(p, a, jnp.array([0])), jnp.array([-2])), "none of 3 adapters"),
        (
            lambda p, a: bank(p, [{"prompt": {"table": jnp.ones((3, 32))}}], jnp.array([0])),
            "prompt/table of adapter 0",
        ),
        (
            lambda p, a: forward(MODEL, bank(p, [a[1]], jnp.array([0])), random_batch(2, 8)),
            "select an adapter for each",
        ),
        (lambda p, a: combine(a, [1, 1, 1], "ties"), "choose one of svd, linear, cat"),
        (lambda p, a: combine(a, [1, 1]), "2 weights for 3 adapters"),
        (lambda p, a: combine(a, [1, 1, 1], "linear"), "different ranks, which linear cannot add"),
        (lambda p, a: combine(a, [1, 1, 1], "cat", rank=3), "leave it out"),
        (lambda p, a: combine([adapter(4, "query", decompose=True)], [1.0]), "those do not add"),
        (
            lambda p, a: bank(p, a, jnp.array([0]))["layers"]["attention"]["query"].dense(),
            "no one weight",
        ),
        (
            lambda p, a: bank(
                {"layers": {"mlp": {"up": jnp.ones(1)}}},
                [adapter(4, "up", MOE, rank=2)],
                jnp.array([0]),
            ),
            "switch or merge its adapters",
        ),
    ],
)
def test_what_does_not_mix_says_why(make, says, params, three):
    with pytest.raises(ValueError, match=says):
        make(params, three)
