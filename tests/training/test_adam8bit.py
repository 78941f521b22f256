"""Adam in eight bits: bitsandbytes' steps, as good an end as float32 Adam's, and the memory that it
is for."""

from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from research import tree
from research.parallel.axes import RULES, partition
from research.parallel.mesh import make_mesh
from research.training import adam8bit
from research.training.adam8bit import Adam8bitState, scale_by_adam_8bit
from research.training.blocks8bit import Moment, block_of, dequantize, quantize
from research.training.optimizer import OptimizerConfig, make
from research.weights.dynamic_map import DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP

GOLDEN = np.load(Path(__file__).with_name("golden_adam8bit.npz"))
LEARNING_RATE, DECAY = 1e-2, 0.1


def state_of(step):
    """bitsandbytes' state after so many steps."""
    if not step:
        return scale_by_adam_8bit(0.9, 0.95, 1e-8).init(jnp.asarray(GOLDEN["start"]))
    codes, scales = (
        [jnp.asarray(GOLDEN[f"{step - 1}/{name}{n}"]) for n in (1, 2)]
        for name in ("state", "absmax")
    )
    return Adam8bitState(jnp.int32(step), *(Moment(c, s) for c, s in zip(codes, scales)))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_step_is_bitsandbytes_own(step):
    before = jnp.asarray(GOLDEN["start"] if step == 0 else GOLDEN[f"{step - 1}/w"])
    optimizer = scale_by_adam_8bit(0.9, 0.95, 1e-8)
    update, state = jax.jit(optimizer.update)(
        jnp.asarray(GOLDEN["gradients"][step]), state_of(step)
    )
    # A learning rate times a step of about 1, to float32; the arithmetic goes in another order.
    after = before * (1 - LEARNING_RATE * DECAY) - LEARNING_RATE * update
    np.testing.assert_allclose(after, GOLDEN[f"{step}/w"], atol=1e-6)
    # Its CPU library looks codes up on a grid of 65,536 points, 3.1e-5 of a block's largest value
    # apart; ours are the nearest, as on its GPUs. Half a step of that grid aside, both are as near
    # to the value.
    for moment, book, n in ((state.mu, DYNAMIC_MAP, 1), (state.nu, UNSIGNED_DYNAMIC_MAP, 2)):
        np.testing.assert_allclose(moment.absmax, GOLDEN[f"{step}/absmax{n}"], rtol=1e-6)
        theirs = GOLDEN[f"{step}/state{n}"]
        large = np.abs(book[theirs]) > 1e-2
        assert (np.asarray(moment.codes) == theirs)[large].mean() > 0.99
        assert np.abs(np.asarray(moment.codes, int) - theirs)[large].max() <= 1


def test_the_unsigned_map_is_bitsandbytes_to_the_bit():
    np.testing.assert_array_equal(UNSIGNED_DYNAMIC_MAP, GOLDEN["qmap2"])


@pytest.mark.parametrize("book", [DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP], ids=["signed", "unsigned"])
def test_codes_are_the_nearest_entries(book):
    x = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32) ** 3
    x = x if book[0] < 0 else np.abs(x)
    moment = quantize(jnp.asarray(x), (0, 1), book)
    scaled = x * (1 / np.abs(x).max(1, keepdims=True))
    distance = np.abs(book[np.asarray(moment.codes)] - scaled)
    nearest = np.abs(book[None, None] - scaled[..., None])
    # What would round to zero goes to the least positive entry instead.
    nearest = nearest.min(-1) if book[0] < 0 else nearest[..., 1:].min(-1)
    np.testing.assert_array_equal(distance, nearest)
    assert (np.asarray(dequantize(moment, (0, 1), book) != 0) | (x == 0) | (book[0] < 0)).all()


def test_what_a_row_once_learnt_does_not_explode_when_its_gradient_stops():
    """A first moment outlives a second one that rounds to zero; m / eps would be a step of
    thousands."""
    optimizer = scale_by_adam_8bit(0.9, 0.95, 1e-8)
    g = jnp.ones((16, 256)).at[:, ::2].set(1e-3)
    state, update = optimizer.init(g), jax.jit(optimizer.update)
    for _ in range(60):
        steps, state = update(g, state)
        g = g.at[:, ::2].set(0.0)
        assert float(jnp.abs(steps).max()) < 2


def losses(optimizer):
    """The losses of a small network over 300 steps of regression."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, teacher = jax.random.normal(keys[0], (256, 64)), jax.random.normal(keys[1], (64, 64)) / 8
    y = jnp.tanh(x @ teacher)
    params = {
        "up": jax.random.normal(keys[2], (64, 128)) / 8,
        "down": jax.random.normal(keys[3], (128, 64)) / 16,
    }
    params["bias"] = jnp.zeros((64,))

    def loss(p):
        return jnp.mean((jnp.tanh(x @ p["up"]) @ p["down"] + p["bias"][None] - y) ** 2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            return (
                optax.apply_updates(params, jax.tree.map(lambda u: -3e-3 * u, updates)),
                state,
            ), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=300)[1]

    return train(params)


def test_training_ends_where_float32_adam_ends():
    ours, theirs = (
        losses(scale_by_adam_8bit(0.9, 0.95, 1e-8)),
        losses(optax.scale_by_adam(0.9, 0.95, 1e-8)),
    )
    assert theirs[-1] < theirs[0] / 20
    assert ours[-1] == pytest.approx(
        float(theirs[-1]), rel=0.1
    )  # 5% apart after a fall by a factor of 50


SPECS = {
    "layers": {
        "query": (("layers", "embed", "heads", "head"), (3, 128, 6, 64)),
        "out": (("layers", "heads", "head", "embed"), (3, 6, 64, 128)),
        "down": (("layers", "mlp", "embed"), (3, 160, 128)),
        "a": (("layers", "embed", "rank"), (3, 512, 16)),
        "scale": (("layers", "vector"), (3, 128)),
    },
    "table": (("vocab", "embed"), (192, 128)),
}


def is_entry(x):
    return type(x) is tuple


def split(specs):
    """Axes and random parameters of a tree of (axes, shape)."""
    rng = np.random.default_rng(0)
    axes = jax.tree.map(lambda s: s[0], specs, is_leaf=is_entry)
    return axes, jax.tree.map(
        lambda s: rng.standard_normal(s[1], np.float32), specs, is_leaf=is_entry
    )


def trainer(axes):
    """A function from parameters to (parameters, state) after three steps."""
    config = OptimizerConfig(
        "adamw8bit", learning_rate=1e-2, schedule="constant", warmup_steps=0, clip_norm=None
    )
    optimizer, _ = make(config, axes, 10)
    init = jax.jit(optimizer.init)

    @jax.jit
    def update(params, state):
        updates, new = optimizer.update(
            jax.tree.map(lambda p: jnp.sin(3 * p), params), state, params
        )
        return optax.apply_updates(params, updates), new

    def run(params):
        state = init(params)
        for _ in range(3):
            params, new = update(params, state)
            assert jax.tree.map(jax.typeof, new) == jax.tree.map(
                jax.typeof, state
            )  # donation and resuming need it
            state = new
        return params, state

    return run


@cache
def unsharded():
    axes, params = split(SPECS)
    return trainer(axes)(params)


def test_stacked_layers_are_updated_as_if_alone():
    axes, params = split({"layers": SPECS["layers"]})
    together, alone = unsharded()[0]["layers"], trainer(axes)
    for layer in range(3):
        one = jax.tree.map(lambda x: x[layer : layer + 1], params)
        for path, x in tree.paths(alone(one)[0]["layers"]).items():
            np.testing.assert_allclose(tree.paths(together)[path][layer], x[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", ["fsdp:4,tensor:2", "data:4,fsdp:2"])
def test_sharded_equals_unsharded_and_codes_lie_where_parameters_do(shape):
    axes, params = split(SPECS)
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        specs = jax.tree.map(
            lambda names, x: partition(names, x.shape, mesh, RULES), axes, params, is_leaf=is_entry
        )
        placed = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs
        )
        sharded, state = trainer(axes)(placed)
    for path, x in tree.paths(unsharded()[0]).items():
        apart = np.abs(tree.paths(sharded)[path] - x)
        # Last bits that differ may put a moment between two codes on the other side: 4.8e-5.
        assert np.mean(apart > 1e-6) < 1e-4 and apart.max() < 1e-4
    states = tree.paths(state)
    for path, param in tree.paths(placed).items():
        assert tree.paths(sharded)[path].sharding == param.sharding
        moments = [
            x for p, x in states.items() if f"/{path}/" in f"{p}/" and x.shape == param.shape
        ]
        assert len(moments) == 2 and all(
            x.sharding.is_equivalent_to(param.sharding, x.ndim) for x in moments
        )
    # A shard holds whole blocks: their scales lie with it.
    [(path, scales)] = [(p, x) for p, x in states.items() if p.endswith("mu/layers/query/absmax")]
    assert (
        tuple(scales.sharding.spec)
        == tuple(states[path.replace("absmax", "codes")].sharding.spec)[:3]
    )


def test_moments_take_two_bytes_and_small_ones_stay_float32():
    _, params = split(SPECS)
    state = unsharded()[1]
    size = {path: leaf.nbytes for path, leaf in tree.paths(state).items()}
    of = {
        name: sum(n for path, n in size.items() if f"/{name}" in path)
        for name in ("query", "a/", "scale", "table")
    }
    assert of["query"] / params["layers"]["query"].size == pytest.approx(2 + 2 * 4 / 192)
    assert of["a/"] / params["layers"]["a"].size == 2 + 2 * 4 / 256
    assert of["scale"] / params["layers"]["scale"].size == 8
    assert block_of((40, 50257, 1), 1) is None  # blocks of one value


def test_no_float32_moments_of_all_layers_exist_at_once():
    axes, params = split({"layers": {"up": (("layers", "embed", "mlp"), (16, 256, 256))}})
    optimizer = scale_by_adam_8bit(0.9, 0.95, 1e-8, jax.tree.map(" ".join, axes, is_leaf=is_entry))
    state = optimizer.init(params)
    update = jax.jit(optimizer.update, donate_argnums=1)
    program = update.lower(params, state, params).compile()
    # One layer's gradient, moments and codes, with what a search for codes takes.
    assert program.memory_analysis().temp_size_in_bytes < 40 * params["layers"]["up"].size / 16
    donated = jax.tree.leaves(state)
    update(params, state, params)
    assert all(x.is_deleted() for x in donated if x.dtype == jnp.uint8)


# Adapters of two layers: factors whose blocks are rows, rows together and heads together, one
# without whole blocks of 256, one too small for codes, and a number for each layer.
ADAPTERS = {
    "a": ("layers embed rank", (2, 512, 16)),
    "b": ("layers rank mlp", (2, 16, 512)),
    "heads": ("layers rank heads head", (2, 16, 4, 64)),
    "odd": ("layers embed rank", (2, 512, 12)),
    "small": ("layers embed rank", (2, 64, 2)),
    "scale": ("layers", (2,)),
}


@pytest.mark.parametrize(("most", "meshed"), [(2**24, True), (40_000, False)])
def test_small_parameters_updated_together_are_as_each_alone(most, meshed, monkeypatch):
    monkeypatch.setattr(adam8bit, "JOINT", most)
    names = {name: axes for name, (axes, _) in ADAPTERS.items()}
    rng = np.random.default_rng(0)
    gradients = [
        {
            name: jnp.asarray(rng.normal(size=shape), jnp.float32)
            for name, (_, shape) in ADAPTERS.items()
        }
        for _ in range(2)
    ]

    def steps(kind):
        monkeypatch.setattr(adam8bit, "platform", lambda: kind)
        optimizer = scale_by_adam_8bit(0.9, 0.95, 1e-8, names)
        state = optimizer.init(gradients[0])
        for g in gradients:
            update, state = optimizer.update(g, state)
        return update, state

    mesh = jax.set_mesh(make_mesh("", jax.devices()[:1])) if meshed else nullcontext()
    with mesh:
        got, want = steps("gpu"), steps("cpu")
    # Compiled loops contract products and sums, so the last bit of float32 may differ, and with it
    # the code of a value between two entries.
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one.astype(float), other, rtol=1e-6, atol=1)
    # Where the two gradients nearly cancel, what was rounded is larger than the sum.
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, got[0], want[0])


def test_parameters_that_devices_split_are_updated_alone(monkeypatch):
    monkeypatch.setattr(adam8bit, "platform", lambda: "gpu")
    leaves = [jnp.zeros(shape) for _, shape in ADAPTERS.values()]
    assert adam8bit._joint_groups(leaves, [1] * 5 + [0]) == [[0, 1, 2]]
    with jax.set_mesh(make_mesh("fsdp:8")):
        assert adam8bit._joint_groups(leaves, [1] * 5 + [0]) == []
