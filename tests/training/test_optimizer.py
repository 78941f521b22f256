"""Optimizers equal their optax counterparts, layer by layer and on any mesh; schedules and rules do
what they say."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from research import tree
from research.parallel.axes import RULES, partition
from research.parallel.mesh import make_mesh
from research.training.muon import matrix_axes
from research.training.optimizer import (
    OptimizerConfig,
    clip_by_global_norm,
    global_norm,
    make,
)
from research.training.schedules import SCHEDULES, make_schedule, warmup_note

NAMES = ("adamw", "adafactor", "lion", "muon")
# Sizes of at least 128, so that adafactor factors the kernels.
LAYER = {
    "query": (("embed", "heads", "head"), (128, 2, 128)),
    "out": (("heads", "head", "embed"), (2, 128, 128)),
    "up": (("embed", "mlp"), (128, 160)),
    "bias": (("heads", "head"), (2, 128)),
    "scale": (("vector",), (128,)),
}
WHOLE = {
    "table": (("vocab", "embed"), (192, 128)),
    "positions": (("position", "embed"), (16, 128)),
    "scale": (("vector",), (128,)),
}
EXPERTS = {
    "up": (("experts", "embed", "mlp"), (2, 128, 160)),
    "router": (("embed", "routes"), (128, 2)),
}


def is_entry(x):
    return type(x) is tuple


def stack(specs, layers):
    return {name: (("layers", *axes), (layers, *shape)) for name, (axes, shape) in specs.items()}


def some(specs, names):
    return {name: specs[name] for name in names.split()}


def split(specs):
    """Axes and random parameters of a tree of (axes, shape)."""
    rng = np.random.default_rng(0)
    axes = jax.tree.map(lambda s: s[0], specs, is_leaf=is_entry)
    return axes, jax.tree.map(
        lambda s: rng.standard_normal(s[1], np.float32), specs, is_leaf=is_entry
    )


def gradients(params, step):
    """Gradients that depend on the parameters and on the step, and that are no multiple of
    either."""
    return jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1 * step * p + 0.01, params)


def trainer(optimizer):
    """A function from parameters to (parameters, state) after three steps."""

    @jax.jit
    def update(params, state, step):
        updates, state = optimizer.update(gradients(params, step), state, params)
        return optax.apply_updates(params, updates), state

    init = jax.jit(optimizer.init)

    def run(params):
        state = init(params)
        for step in range(3):
            params, new = update(params, state, jnp.float32(step))
            assert jax.tree.map(jax.typeof, new) == jax.tree.map(
                jax.typeof, state
            )  # donation and resuming need it
            state = new
        return params, state

    return run


def run(optimizer, params):
    return trainer(optimizer)(params)


def assert_close(a, b, tolerance):
    for path, x in tree.paths(a).items():
        np.testing.assert_allclose(x, tree.paths(b)[path], rtol=0, atol=tolerance, err_msg=path)


# The learning rate is 1e-2 and parameters are of order 1, so a step is 1e-2 and float32 rounds a
# parameter to 1e-7: 3 steps of the same mathematics in another order stay within a few of those.
ROUNDING = 1e-6


def flat_config(name, **fields):
    return OptimizerConfig(
        name=name, learning_rate=1e-2, schedule="constant", warmup_steps=0, **fields
    )


# --- equal to optax


def counterpart(name, decayed):
    common = {"weight_decay": 0.1, "mask": decayed}
    return {
        "adamw": lambda: optax.adamw(1e-2, 0.9, 0.95, 1e-8, **common),
        "lion": lambda: optax.lion(1e-2, 0.9, 0.99, **common),
    }[name]()


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_equals_optax(name):
    axes, params = split({"layer": some(LAYER, "query bias"), **some(WHOLE, "table scale")})
    decayed = jax.tree.map(
        lambda names: "vector" not in names and names != ("heads", "head"), axes, is_leaf=is_entry
    )
    theirs = optax.chain(optax.clip_by_global_norm(1.0), counterpart(name, decayed))
    ours, _ = make(flat_config(name), axes, 10)
    assert_close(run(ours, params)[0], run(theirs, params)[0], ROUNDING)


@pytest.mark.parametrize(("scale", "momentum"), [(False, None), (True, 0.9)])
def test_adafactor_equals_optax(scale, momentum):
    axes, params = split({"layer": some(LAYER, "query up bias"), "table": WHOLE["table"]})
    theirs = optax.adafactor(1e-2, multiply_by_parameter_scale=scale, momentum=momentum)
    config = flat_config(
        "adafactor", parameter_scale=scale, b1=momentum, weight_decay=0.0, clip_norm=None
    )
    ours, _ = make(config, axes, 10)
    assert_close(run(ours, params)[0], run(theirs, params)[0], ROUNDING)


def hidden_matrix(shape, layers=1):
    return split({"w": (("layers", "embed", "mlp"), (layers, *shape))})


# Five steps with a slope of up to 3.4 each make 500 times the rounding of the smallest singular
# values, and a step is 1e-2 * 0.2 * sqrt(160) of them.
MUON_ROUNDING = 1e-5


@pytest.mark.parametrize("shape", [(128, 160), (160, 128)])
def test_muon_equals_optax(shape):
    axes, params = hidden_matrix(shape)
    ours, _ = make(flat_config("muon", weight_decay=0.0, clip_norm=None), axes, 10)
    theirs = optax.contrib.muon(1e-2, consistent_rms=0.2)
    assert_close(
        {"w": run(ours, params)[0]["w"][0]}, run(theirs, {"w": params["w"][0]})[0], MUON_ROUNDING
    )


def muon_reference(g, momentum=0.95):
    """One update from zero momentum, in float64 and without an iteration of the implementation's
    own."""
    m = (1 - momentum) * g
    x = momentum * m / (1 - momentum**2) + (1 - momentum) * g / (1 - momentum)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return 0.2 * math.sqrt(max(g.shape)) * (u * s) @ vt


@pytest.mark.parametrize("axes", ["embed heads head", "heads head embed", "embed mlp"])
def test_muon_equals_singular_values_in_numpy(axes):
    shape = {"embed heads head": (24, 4, 8), "heads head embed": (4, 8, 24), "embed mlp": (24, 40)}[
        axes
    ]
    matrix = (32, 24) if axes == "heads head embed" else (24, -1)
    g = np.random.default_rng(1).standard_normal((3, *shape))
    optimizer, _ = make(
        flat_config("muon", weight_decay=0.0, clip_norm=None), {"w": ("layers", *axes.split())}, 10
    )
    zero = {"w": jnp.zeros(g.shape)}
    updates, _ = jax.jit(optimizer.update)(
        {"w": jnp.array(g, jnp.float32)}, optimizer.init(zero), zero
    )
    for layer in range(3):
        expected = -1e-2 * muon_reference(g[layer].reshape(matrix)).reshape(shape)
        np.testing.assert_allclose(updates["w"][layer], expected, rtol=0, atol=MUON_ROUNDING)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    layers = {**stack(some(LAYER, "query bias scale"), 2), **stack(EXPERTS, 2)}
    specs = {"layers": layers, **some(WHOLE, "table scale")}
    axes, params = split(specs)
    fields = {"weight_decay": 0.0, "clip_norm": None}
    muon, adamw = (
        run(make(flat_config(name, **fields), axes, 10)[0], params)[0] for name in ("muon", "adamw")
    )
    # Two programs, whose last bits the compiler may round otherwise.
    same = functools.partial(np.allclose, rtol=1e-6, atol=0)
    equal = {path for path, x in tree.paths(muon).items() if same(x, tree.paths(adamw)[path])}
    assert equal == {"layers/bias", "layers/scale", "table", "scale"}


# --- stacked and sharded


@pytest.mark.parametrize("name", NAMES)
def test_stacked_layers_are_updated_as_if_alone(name):
    axes, params = split(
        {"layers": {**stack(some(LAYER, "query out bias"), 3), **stack(EXPERTS, 3)}}
    )
    config = flat_config(
        name, clip_norm=None, **({"parameter_scale": True} if name == "adafactor" else {})
    )
    together = run(make(config, axes, 10)[0], params)[0]
    alone = trainer(make(config, axes, 10)[0])
    for layer in range(3):
        one, stacked = (
            jax.tree.map(lambda x: x[layer : layer + 1], whole) for whole in (params, together)
        )
        assert_close(stacked, alone(one)[0], MUON_ROUNDING if name == "muon" else ROUNDING)


def test_adafactor_does_not_factor_over_layers_or_experts():
    axes = {
        "scale": ("layers", "vector"),
        "up": ("layers", "experts", "embed", "mlp"),
        "table": ("vocab", "embed"),
    }
    shapes = {"scale": (130, 140), "up": (3, 2, 128, 160), "table": (192, 128)}
    optimizer, _ = make(flat_config("adafactor", clip_norm=None), axes, 10)
    state = jax.eval_shape(
        optimizer.init, {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    )
    moments = {path.removeprefix("0/0/"): leaf.shape for path, leaf in tree.paths(state).items()}
    assert moments["scale/0/v"] == (130, 140)
    assert (moments["up/0/v_row"], moments["up/0/v_col"]) == ((3, 2, 128), (3, 2, 160))
    assert {moments["table/0/v_row"], moments["table/0/v_col"]} == {(128,), (192,)}


SHARDED = {
    "layers": {**stack(some(LAYER, "query out bias"), 3), "up": stack(EXPERTS, 3)["up"]},
    "table": WHOLE["table"],
}


@functools.cache
def unsharded(name):
    axes, params = split(SHARDED)
    return run(make(flat_config(name), axes, 10)[0], params)[0]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, "fsdp:4,tensor:2") for name in NAMES]
    + [(name, "data:2,fsdp:2,expert:2") for name in NAMES[1::2]],
)
def test_sharded_equals_unsharded(name, shape):
    axes, params = split(SHARDED)
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        specs = jax.tree.map(
            lambda names, x: partition(names, x.shape, mesh, RULES), axes, params, is_leaf=is_entry
        )
        placed = jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs
        )
        sharded, state = run(make(flat_config(name), axes, 10)[0], placed)
    # Sums over devices round in another order: the norm that clips, adafactor's means.
    assert_close(sharded, unsharded(name), MUON_ROUNDING if name == "muon" else ROUNDING)
    states = tree.paths(state)
    for path, param in tree.paths(placed).items():
        assert tree.paths(sharded)[path].sharding == param.sharding
        moments = [
            x for p, x in states.items() if f"/{path}/" in f"{p}/" and x.shape == param.shape
        ]
        assert moments or name == "adafactor"
        assert all(x.sharding.is_equivalent_to(param.sharding, x.ndim) for x in moments)


def test_adafactor_rows_and_columns_are_sharded_as_their_axes():
    mesh = make_mesh("fsdp:4,tensor:2")
    optimizer, _ = make(flat_config("adafactor"), {"up": ("layers", "embed", "mlp")}, 10)
    with jax.set_mesh(mesh):
        up = jax.device_put(
            jnp.zeros((3, 128, 160)), NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
        )
        state = tree.paths(jax.jit(optimizer.init)({"up": up}))
    specs = {path.rsplit("/", 1)[-1]: leaf.sharding.spec for path, leaf in state.items()}
    assert (specs["v_row"], specs["v_col"]) == (jax.P(None, "fsdp"), jax.P(None, "tensor"))


@pytest.mark.parametrize(
    ("shape", "gathers"), [("fsdp:8", 0), ("fsdp:4,tensor:2", 0), ("data:4,fsdp:2", 1)]
)
def test_muon_moves_matrices_and_gathers_only_over_data(shape, gathers):
    """Each mesh axis that splits a matrix costs one all-to-all each way; one that does not, a
    gather of the updates."""
    mesh = make_mesh(shape)
    optimizer, _ = make(flat_config("muon", clip_norm=None), {"up": ("layers", "embed", "mlp")}, 10)
    with jax.set_mesh(mesh):
        spec = partition(("layers", "embed", "mlp"), (8, 128, 160), mesh, RULES)
        params = {"up": jax.device_put(jnp.zeros((8, 128, 160)), NamedSharding(mesh, spec))}
        program = str(jax.make_jaxpr(optimizer.update)(params, optimizer.init(params), params))
    split_over = sum(mesh.shape[axis] > 1 for axis in ("fsdp", "tensor"))
    assert program.count("all_to_all[") == 2 * split_over
    assert program.count("all_gather[") == gathers


@pytest.mark.parametrize(
    "spec",
    [
        jax.P(None, ("fsdp", "tensor")),
        jax.P(None, "tensor", "fsdp"),
        jax.P("tensor", None, "fsdp"),
        jax.P(),
    ],
)
def test_muon_on_any_sharding(spec):
    axes, params = hidden_matrix((128, 160), layers=6)
    optimizer, _ = make(flat_config("muon"), axes, 10)
    mesh = make_mesh("fsdp:4,tensor:2")
    with jax.set_mesh(mesh):
        sharded, _ = run(optimizer, jax.device_put(params, NamedSharding(mesh, spec)))
    assert_close(sharded, run(optimizer, params)[0], MUON_ROUNDING)


# --- clipping, decay, rules


def test_clipping_equals_optax_and_takes_a_known_norm():
    _, grads = split({"layer": LAYER})
    grads = jax.tree.map(jnp.asarray, grads)
    norm = global_norm(grads)
    assert float(norm) == pytest.approx(
        float(optax.tree.norm(grads)), rel=1e-6
    )  # other order of a float32 sum
    for limit in (1.0, 1e9):
        ours = clip_by_global_norm(limit).update(grads, optax.EmptyState())[0]
        theirs = optax.clip_by_global_norm(limit).update(grads, optax.EmptyState())[0]
        known = clip_by_global_norm(limit).update(grads, optax.EmptyState(), grad_norm=norm)[0]
        assert_close(ours, theirs, 1e-7)  # one multiplication where optax divides and multiplies
        assert_close(ours, known, 0)
    assert (
        float(global_norm({"x": jnp.full((4,), 200.0, jnp.float16)})) == 400.0
    )  # squares beyond float16


def test_a_known_norm_is_not_computed_again():
    axes, params = split({"layer": LAYER})
    optimizer, _ = make(flat_config("adamw"), axes, 10)
    arguments = (params, optimizer.init(params), params)
    assert "reduce_sum" in str(jax.make_jaxpr(optimizer.update)(*arguments))
    known = functools.partial(optimizer.update, grad_norm=jnp.float32(1))
    assert "reduce_sum" not in str(jax.make_jaxpr(known)(*arguments))


def decayed_paths(config, specs):
    """Paths of parameters that a zero gradient moves."""
    axes, params = split(specs)
    optimizer, _ = make(config, axes, 10)
    updates, _ = jax.jit(optimizer.update)(
        jax.tree.map(np.zeros_like, params), optimizer.init(params), params
    )
    moves = zip(tree.paths(updates).items(), jax.tree.leaves(params))
    return {path: np.max(np.abs(x / p)) for (path, x), p in moves if np.any(x)}


def test_matrices_decay_and_vectors_do_not():
    specs = {"layers": {**stack(LAYER, 2), **stack(EXPERTS, 2)}, **WHOLE}
    kernels = {"layers/query", "layers/out", "layers/up", "layers/router"}
    assert decayed_paths(flat_config("lion"), specs).keys() == kernels | {"table", "positions"}
    assert decayed_paths(flat_config("lion", decay_embeddings=False), specs).keys() == kernels
    assert not decayed_paths(flat_config("lion", weight_decay=0.0), WHOLE)


def test_rules_set_decay_and_learning_rate():
    decay = flat_config(
        "lion", weight_decay_rules=((r"layers/(query|out)", 0.5), (".*scale", 2), (".*", 0))
    )
    moved = decayed_paths(decay, {"layers": stack(LAYER, 2), **WHOLE})
    assert moved.keys() == {"layers/query", "layers/out", "layers/scale", "scale"}
    assert moved["layers/query"] == pytest.approx(
        1e-2 * 0.1 * 0.5, rel=1e-5
    )  # a few float32 products
    assert moved["scale"] == pytest.approx(1e-2 * 0.1 * 2, rel=1e-5)
    axes, params = split({"layers": stack(LAYER, 2), **WHOLE})
    updates = {}
    for rules in ((("layers/up", 0), ("layers/.*", 0.5), (".*", 1)), ()):
        optimizer, _ = make(
            flat_config("lion", learning_rate_rules=rules, weight_decay=0.0), axes, 10
        )
        updates[bool(rules)] = jax.jit(optimizer.update)(params, optimizer.init(params), params)[0]
    layers, rest = updates[False]["layers"], {name: updates[False][name] for name in WHOLE}
    expected = {
        "layers": {name: x * (0 if name == "up" else 0.5) for name, x in layers.items()},
        **rest,
    }
    assert_close(updates[True], expected, 0)


@pytest.mark.parametrize("field", ["weight_decay_rules", "learning_rate_rules"])
def test_rules_that_do_not_fit_are_refused(field):
    axes, _ = split({"layers": stack(LAYER, 2)})
    with pytest.raises(ValueError, match="'layers/querry' matches no parameter.*layers/query"):
        make(flat_config("adamw", **{field: (("layers/querry", 1.0), (".*", 1.0))}), axes, 10)
    with pytest.raises(ValueError, match="no rule covers layers/"):
        make(flat_config("adamw", **{field: (("layers/query", 1.0),)}), axes, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sgd"}, "choose one of adamw, adamw8bit, adafactor, lion, muon"),
        ({"schedule": "step"}, "choose one of constant, cosine"),
        ({"name": "lion", "eps": 1e-8}, "eps is set and lion does not use it"),
        ({"name": "adamw", "momentum": 0.9}, "momentum is set and adamw"),
        ({"name": "adafactor", "b2": 0.9}, "b2 is set and adafactor"),
        ({"name": "muon", "parameter_scale": False}, "parameter_scale is set and muon"),
        ({"schedule": "constant", "min_ratio": 0.1}, "min_ratio is set and schedule constant"),
        (
            {"schedule": "inverse_sqrt", "decay_steps": 3},
            "decay_steps is set and schedule inverse_sqrt",
        ),
        ({"schedule": "wsd", "decay_steps": 3, "decay_fraction": 0.1}, "both set"),
        (
            {"weight_decay_rules": ((".*", 1),), "decay_embeddings": False},
            "decay_embeddings has no effect",
        ),
        (
            {"weight_decay_rules": ((".*", 1),), "weight_decay": 0.0},
            "weight_decay_rules has no effect",
        ),
        ({"b1": 1.5}, "b1=1.5 must lie between 0 and 1"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be"),
        ({"clip_norm": float("nan")}, "clip_norm=nan must be"),
    ],
)
def test_configuration_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)


def test_configuration_goes_through_json():
    config = OptimizerConfig(
        "muon", weight_decay_rules=(("a.*", 1.0), (".*", 0.0)), decay_fraction=0.5
    )
    assert OptimizerConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("layers experts embed mlp", (2, 1)),
        ("layers embed kv_heads head", (1, 1)),
        ("embed vector", (0, 1)),
        ("layers vector", None),
        ("experts mlp", None),
        ("vocab", None),
        ("layers embed routes", (1, 1)),
    ],
)
def test_what_is_a_matrix(axes, expected):
    assert matrix_axes(axes.split()) == expected


# --- speed


def test_an_adamw_update_stores_nothing_but_its_results():
    """Donated parameters and moments are overwritten, and no array of the size of a gradient is
    made on the way."""
    specs = {
        "up": (("embed", "mlp"), (256, 256)),
        "query": (("embed", "heads", "head"), (256, 4, 64)),
    }
    axes, params = split({"layers": stack(specs, 4)})
    optimizer, _ = make(OptimizerConfig(), axes, 10)
    state = optimizer.init(params)

    def step(params, state, grads, norm):
        updates, state = optimizer.update(grads, state, params, grad_norm=norm)
        return optax.apply_updates(params, updates), state

    program = (
        jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, jnp.float32(1)).compile()
    )
    memory = program.memory_analysis()
    leaf = 4 * 256 * 256 * 4
    assert memory.temp_size_in_bytes < leaf / 10
    assert memory.alias_size_in_bytes >= 3 * 2 * leaf


# --- schedules


@pytest.mark.parametrize(
    ("name", "fields", "points"),
    [
        ("constant", {"warmup_steps": 4}, {0: 0, 1: 0.25, 4: 1, 50: 1, 100: 1}),
        ("cosine", {"warmup_steps": 10}, {0: 0, 5: 0.5, 10: 1, 55: 0.55, 100: 0.1, 200: 0.1}),
        (
            "cosine",
            {"warmup_steps": 0, "min_ratio": 0.0, "decay_steps": 50},
            {0: 1, 25: 0.5, 50: 0, 99: 0},
        ),
        ("linear", {"warmup_steps": 10}, {0: 0, 10: 1, 55: 0.5, 100: 0}),
        (
            "linear",
            {"warmup_steps": 10, "min_ratio": 0.2, "decay_steps": 40},
            {10: 1, 30: 0.6, 50: 0.2, 90: 0.2},
        ),
        ("inverse_sqrt", {"warmup_steps": 4}, {0: 0, 2: 0.5, 4: 1, 16: 0.5, 64: 0.25}),
        ("inverse_sqrt", {"warmup_steps": 0}, {0: 1, 3: 0.5}),
        ("wsd", {"warmup_steps": 10}, {0: 0, 10: 1, 80: 1, 90: 0.5, 100: 0}),
        (
            "wsd",
            {"warmup_steps": 0, "min_ratio": 0.5, "decay_steps": 40},
            {0: 1, 60: 1, 80: 0.75, 100: 0.5},
        ),
        ("linear", {}, {0: 0, 5: 1, 100: 0}),  # a twentieth of 100 steps of warm-up
    ],
)
def test_schedule_values(name, fields, points):
    schedule = make_schedule(name, 2e-3, 100, **fields)
    for step, ratio in points.items():
        assert float(schedule(jnp.int32(step))) == pytest.approx(
            2e-3 * ratio, rel=1e-6, abs=1e-10
        ), step  # float32


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 5000), st.data())
def test_schedules_rise_to_the_peak_and_never_again(name, total, data):
    warmup = data.draw(st.none() | st.integers(0, total - 1))
    schedule = make_schedule(name, 1.0, total, warmup)
    peak = min(2000, total // 20) if warmup is None else warmup
    steps = np.sort(
        np.concatenate(
            [np.linspace(0, total, 30).astype(np.int32), np.array([peak, total], np.int32)]
        )
    )
    values = np.asarray(schedule(jnp.asarray(steps)))
    rounding = 1e-6  # of a float32 near 1
    assert np.all(values >= -rounding) and np.all(values <= 1 + rounding)
    assert np.all(np.diff(values[steps <= peak]) >= -rounding) and np.all(
        np.diff(values[steps >= peak]) <= rounding
    )
    assert values[steps == peak] == pytest.approx(1, abs=rounding)
    last = {"cosine": 0.1, "linear": 0, "wsd": 0}.get(name)
    assert last is None or values[-1] == pytest.approx(last, abs=rounding)


def test_lengths_follow_the_run_after_overrides():
    config = OptimizerConfig(schedule="wsd", decay_fraction=0.5)
    for total in (100, 1000):
        _, schedule = make(config, {"w": ("embed", "mlp")}, total)
        values = [
            float(schedule(step)) / 3e-4
            for step in (total // 20, total // 2, total * 3 // 4, total)
        ]
        assert values == pytest.approx([1, 1, 0.5, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "fields", "got"),
    [
        ("wsd", {"warmup_steps": 100}, "optimizer.warmup_steps=100 do"),
        ("cosine", {"warmup_steps": 150}, "optimizer.warmup_steps=150 do"),
        (
            "linear",
            {"warmup_steps": 60, "decay_steps": 50},
            "optimizer.warmup_steps=60 and optimizer.decay_steps=50 do",
        ),
        ("wsd", {"warmup_steps": 0, "decay_steps": 101}, ".* optimizer.decay_steps=101 do"),
        ("wsd", {"decay_steps": 0}, ".* optimizer.decay_steps=0 do"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_by_their_names(name, fields, got):
    with pytest.raises(ValueError, match=f"^{got} not fit into train.steps=100, .* set lower"):
        make_schedule(name, 1.0, 100, **fields)


@pytest.mark.parametrize("name", ["constant", "inverse_sqrt"])
def test_a_warm_up_that_outlasts_the_run_is_said(name):
    """Those schedules have no end that it could push out, and a trial may want the long run's."""
    schedule = make_schedule(name, 1.0, 100, warmup_steps=400)
    assert float(schedule(99)) == pytest.approx(0.2475)
    (line,) = warmup_note(100, 400)
    assert "warmup_steps=400 is not over within the 100 steps" in line and "is 25% of" in line
    assert warmup_note(100, 99) == warmup_note(100, None) == []


def test_the_schedule_is_what_the_update_uses():
    optimizer, schedule = make(
        OptimizerConfig("lion", weight_decay=0.0, warmup_steps=3), {"w": ("embed", "mlp")}, 20
    )
    params = {"w": jnp.ones((4, 4))}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(6):
        updates, state = update(params, state, params)
        assert float(-updates["w"][0, 0]) == pytest.approx(
            float(schedule(step)), rel=1e-6
        )  # one float32 product
