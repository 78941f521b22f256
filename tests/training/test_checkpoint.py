"""Checkpoints: what comes back is bit for bit what was saved, or is named and passed over."""

import gc
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research import tree
from research.training.checkpoint import CheckpointConfig, Checkpoints, restore_params
from research.training.fingerprint import fingerprint

DTYPES = (
    "int2 int4 uint2 uint4 int8 uint8 int16 int32 uint32 bool "
    "float8_e4m3fn bfloat16 float16 float32 complex64"
).split()


def make_mesh(fsdp, tensor, kind=AxisType.Explicit):
    devices = np.array(jax.devices()[: fsdp * tensor]).reshape(fsdp, tensor)
    return Mesh(devices, ("fsdp", "tensor"), axis_types=(kind,) * 2)


def random_array(rng, dtype, shape):
    """Random bits: for the floating types NaN payloads, infinities and denormals among them."""
    dtype = jnp.dtype(dtype)
    if dtype == jnp.bool_ or dtype.name in ("int2", "int4", "uint2", "uint4"):
        values = {"bool": 2, "int2": 4, "uint2": 4}.get(dtype.name, 16)
        raw = rng.integers(0, values, shape, np.uint8)
        if dtype.name.startswith("int"):  # sign-extended in the byte that holds one of them
            raw = raw.astype(np.int8) - values // 2
        return jnp.array(raw.astype(dtype))
    return jnp.array(
        np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    )


def state_of(step, shape=(8, 16)):
    """A state with an array of every type, a vector, a scalar, an empty array, a key and all
    negative zeros."""
    rng = np.random.default_rng(step)
    weights = {"w": random_array(rng, "float32", (4, *shape))}
    return {
        "params": {"layers": weights, "scale": random_array(rng, "bfloat16", shape[-1:])},
        "extra": {name: random_array(rng, name, shape) for name in DTYPES},
        "zeros": {"negative": -jnp.zeros(shape), "empty": jnp.zeros((0, 4))},
        "key": jax.random.key_data(jax.random.key(step)),
        "step": jnp.int32(step),
    }


def bits(x):
    x = np.asarray(x)
    return (str(x.dtype), x.shape, np.ascontiguousarray(x).tobytes())


def same(a, b):
    return {path: bits(x) for path, x in tree.paths(a).items()} == {
        path: bits(x) for path, x in tree.paths(b).items()
    }


def abstract(state, mesh=None, spec=P(None, "fsdp", "tensor")):
    def describe(x):
        place = (
            None
            if mesh is None
            else NamedSharding(mesh, P(*spec[-x.ndim :]) if x.ndim > 1 and x.size else P())
        )
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    return jax.tree.map(describe, state)


def place(state, mesh):
    return jax.tree.map(
        lambda x, like: jax.device_put(np.asarray(x), like.sharding), state, abstract(state, mesh)
    )


def save_steps(folder, steps, state_of=state_of, **config):
    with Checkpoints(folder, CheckpointConfig(**config)) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, state_of(step), {"step": step})


# --- fingerprints


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
def test_fingerprint_does_not_depend_on_the_sharding(shape, kind):
    state = state_of(0)["params"]
    mesh = make_mesh(*shape, kind)
    placed = place(state, mesh)
    assert fingerprint(placed) == fingerprint(state)
    with jax.set_mesh(mesh):
        assert fingerprint(placed) == fingerprint(state)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 2**32), st.integers(0, 127), st.integers(0, 63))
def test_fingerprint_changes_with_every_bit(dtype, seed, element, bit):
    x = random_array(np.random.default_rng(seed), dtype, (8, 16))
    width = {"bool": 1, "int2": 2, "uint2": 2, "int4": 4, "uint4": 4}.get(
        dtype, 8 * x.dtype.itemsize
    )
    raw = np.asarray(x).copy().view(np.uint8).reshape(128, -1)
    bit %= width
    raw[element, bit // 8] ^= 1 << bit % 8
    if dtype in ("int2", "int4"):  # sign-extended in the byte that holds one of them
        raw = (raw.astype(np.uint8) << (8 - width)).view(np.int8) >> (8 - width)
    flipped = jnp.array(raw.view(np.asarray(x).dtype).reshape(8, 16))
    assert fingerprint({"x": flipped}) != fingerprint({"x": x})


def test_fingerprint_sees_swapped_elements_axes_and_two_flipped_signs():
    x = jnp.array(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)
    changes = [
        x.T,
        x[::-1],
        x.at[0].set(x[1]).at[1].set(x[0]),
        x.at[0, 0].multiply(-1).at[3, 5].multiply(-1),
    ]
    prints = {fingerprint({"x": y})["x"] for y in [x, *changes]}
    assert len(prints) == 5


def test_the_halves_of_a_fingerprint_are_independent():
    rng = np.random.default_rng(0)
    prints = fingerprint({str(n): random_array(rng, "float32", (16,)) for n in range(40)}).values()
    assert (
        sum(text[:2] == text[8:10] for text in prints) < 4
    )  # top bytes, equal by chance in one of 256


def test_fingerprint_of_eight_byte_types():
    script = (
        "import jax, numpy as np; jax.config.update('jax_enable_x64', True)\n"
        "import jax.numpy as jnp\n"
        "from research.training.fingerprint import fingerprint as f\n"
        "for t in ('float64', 'int64', 'uint64', 'complex128'):\n"
        "    raw = np.random.default_rng(0).integers(0, 256, 64 * np.dtype(t).itemsize, np.uint8)\n"
        "    seen = {f({'x': jnp.array(raw.view(t))})['x']}\n"
        "    for bit in range(0, 8 * np.dtype(t).itemsize, 5):\n"
        "        flipped = raw.copy(); flipped[bit // 8] ^= 1 << bit % 8\n"
        "        seen.add(f({'x': jnp.array(flipped.view(t))})['x'])\n"
        "    assert len(seen) == 1 + len(range(0, 8 * np.dtype(t).itemsize, 5)), t\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script], check=True, env=child_environment()
    )


def test_fingerprint_refuses_what_has_no_bits():
    for leaf in (jax.random.key(0), np.zeros(3), 3.0):
        with pytest.raises(ValueError, match="a/b is a"):
            fingerprint({"a": {"b": leaf}})


# --- saving and restoring


def toy_training():
    """A donated AdamW step on a tiny regression, and its state at the start."""
    optimizer = optax.adamw(1e-2)

    def step(state, x_BD):
        loss = lambda params: jnp.mean((jnp.tanh(x_BD @ params["w"]) @ params["v"]) ** 2)  # noqa: E731
        updates, moments = optimizer.update(
            jax.grad(loss)(state["params"]), state["moments"], state["params"]
        )
        key = jax.random.key_data(jax.random.split(jax.random.wrap_key_data(state["key"]))[0])
        return {
            "params": optax.apply_updates(state["params"], updates),
            "moments": moments,
            "key": key,
        }

    params = {"w": jax.random.normal(jax.random.key(0), (64, 32)), "v": jnp.ones((32, 1))}
    state = {
        "params": params,
        "moments": optimizer.init(params),
        "key": jax.random.key_data(jax.random.key(1)),
    }
    return jax.jit(step, donate_argnums=0), state


def test_four_steps_are_two_and_two_from_a_checkpoint(tmp_path):
    step, state = toy_training()
    x_BD = jax.random.normal(jax.random.key(2), (16, 64))
    like = abstract(state)
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(1, 5):
            state = step(state, x_BD)  # donates what the save of step 2 may still be writing
            if number == 2:
                checkpoints.save(2, state, {"tokenizer": "abc"})
    with Checkpoints(tmp_path) as checkpoints:
        number, resumed, meta = checkpoints.restore(like)
    assert (number, meta) == (2, {"tokenizer": "abc"})
    assert jax.tree.structure(resumed) == jax.tree.structure(state)
    for _ in range(2):
        resumed = step(resumed, x_BD)
    assert same(resumed, state)


def test_saved_buffers_may_be_donated_at_once(tmp_path):
    add = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    state = {
        f"x{i}": jnp.full((1 << 20,), i, jnp.float32) for i in range(8)
    }  # 32 MB, so that writing lasts
    kept = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = add(state)
        checkpoints.wait()
        _, restored, _ = checkpoints.restore(abstract(state))
    assert same(restored, kept)


def test_every_type_comes_back_on_another_mesh(tmp_path):
    state = state_of(5)
    old, new = make_mesh(4, 2), make_mesh(1, 8)
    with jax.set_mesh(old), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, place(state, old), {"nested": {"value": [1, 2.5, None]}})
    for mesh in (new, None):
        like = abstract(state, mesh)
        with Checkpoints(tmp_path) as checkpoints:
            step, restored, meta = checkpoints.restore(like)
        assert step == 5 and meta == {"nested": {"value": [1, 2.5, None]}}
        assert same(restored, state)
        if mesh is not None:
            assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, like))


def test_keep_and_keep_period(tmp_path):
    save_steps(tmp_path, range(1, 7), keep=2, keep_period=3)
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [3, 5, 6]


def test_saving_a_step_again_writes_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(state_of(1))) is None
        assert checkpoints.latest() is None
        assert checkpoints.save(1, state_of(1), {})
        assert not checkpoints.save(1, state_of(2), {})
        assert checkpoints.latest() == 1
        assert same(checkpoints.restore(abstract(state_of(1)))[1], state_of(1))


def test_latest_is_not_the_step_being_written(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    write = ocp.JsonCheckpointHandler._save_fn

    async def slow(self, *args):
        time.sleep(0.5)
        await write(self, *args)

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", slow)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {})
        assert checkpoints.latest() is None
        checkpoints.wait()
        assert checkpoints.latest() == 1


def test_warm_start_reads_the_parameters_only_and_changes_nothing(tmp_path, caplog):
    save_steps(tmp_path, [1, 2])
    like = abstract(state_of(0)["params"], make_mesh(2, 4))
    step, params, meta = restore_params(tmp_path, like)
    assert step == 2 and meta == {"step": 2} and same(params, state_of(2)["params"])
    assert params["layers"]["w"].sharding == like["layers"]["w"].sharding
    record = tmp_path / "2" / "record" / "metadata"
    record.write_text(record.read_text().replace('"step": 2', '"step": 3', 1))
    before = sorted(tmp_path.rglob("*"))
    step, params, _ = restore_params(tmp_path, like)
    assert step == 1 and same(params, state_of(1)["params"])
    assert "step 2 (its record was changed; passed over)" in caplog.text
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="holds no checkpoint"):
        restore_params(tmp_path / "nothing", like)
    assert not (tmp_path / "nothing").exists()


def test_another_model_is_no_damage(tmp_path):
    save_steps(tmp_path, [1, 2])
    changed = abstract(state_of(0))
    changed["params"]["layers"]["w"] = jax.ShapeDtypeStruct((4, 8, 17), jnp.float32)
    changed["params"]["scale"] = jax.ShapeDtypeStruct((16,), jnp.float32)
    changed["params"]["new"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    del changed["zeros"]
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError) as error:
        checkpoints.restore(changed)
    for text in (
        "params/layers/w: got float32[4, 8, 16], wanted float32[4, 8, 17]",
        "params/scale: got bfloat16[16], wanted float32[16]",
        "params/new: got nothing, wanted float32[2]",
        "zeros/empty: got float32[0, 4], wanted nothing",
    ):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="params/new: got nothing"):
        restore_params(tmp_path, changed["params"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_sharding_that_does_not_divide_is_no_damage(tmp_path):
    save_steps(tmp_path, [1])
    like = abstract(state_of(0))
    thirds = NamedSharding(make_mesh(3, 1), P("fsdp"))
    like["params"]["scale"] = jax.ShapeDtypeStruct((16,), jnp.bfloat16, sharding=thirds)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="params/scale cannot be restored onto"),
    ):
        checkpoints.restore(like)
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


# --- damage


@pytest.fixture
def collected():
    """Orbax drops coroutines it has not awaited when a read fails; they are collected while the
    filter below holds."""
    yield
    gc.collect()


def damages(test):
    """A test in which reads fail."""
    for name in ("pytest.PytestUnraisableExceptionWarning", "RuntimeWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{name}")(test)
    return pytest.mark.usefixtures("collected")(test)


def big_state(step):
    """Arrays large enough to be stored outside of the index, which has checksums of its own."""
    rng = np.random.default_rng(step)
    return {name: random_array(rng, name, (64, 512)) for name in ("float32", "bfloat16", "uint32")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_steps(folder, [1, 2], big_state)
    return folder


def step_files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def restore_damaged(saved, copy, damage, caplog):
    """Restores a copy of `saved` after `damage(step folder)`; what the warning says, "" where it
    was harmless."""
    shutil.copytree(saved, copy)
    damage(copy / "2")
    caplog.clear()
    with Checkpoints(copy) as checkpoints:
        step, state, meta = checkpoints.restore(abstract(big_state(0)))
        assert same(state, big_state(step)) and meta == {"step": step}
        names = sorted(p.name for p in copy.iterdir())
        warnings = [
            record.getMessage() for record in caplog.records if "damaged" in record.getMessage()
        ]
        if step == 2:
            assert names == ["1", "2"] and not warnings
            return ""
        assert (step, names) == (1, ["1", "damaged-2"])
        assert (
            len(warnings) == 1
            and "checkpoint step 2 (" in warnings[0]
            and "renamed to damaged-2" in warnings[0]
        )
        assert checkpoints.latest() == 1
        return warnings[0]


@damages
def test_no_flipped_bit_is_silent(saved, tmp_path, caplog):
    rng = random.Random(0)
    said = {}
    for file in step_files(saved / "2"):
        size = (saved / "2" / file).stat().st_size
        payload = size > 100_000

        def flip(folder):
            if size:
                content = bytearray((folder / file).read_bytes())
                content[rng.randrange(size)] ^= 1 << rng.randrange(8)
                (folder / file).write_bytes(content)

        for number in range(8 if payload else 2):
            what = "payload" if payload else str(file)
            copy = tmp_path / f"{number}-{str(file).replace('/', '-')}"
            said.setdefault(what, []).append(restore_damaged(saved, copy, flip, caplog))
    assert sum(map(len, said.values())) >= 24
    assert all(
        "the bits of" in text for text in said["payload"]
    )  # Orbax alone restores every one of them
    assert all("its record" in text for text in said["record/metadata"])


@damages
def test_truncated_and_missing_files_are_found_or_harmless(saved, tmp_path, caplog):
    def cut(folder):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])

    found = {}
    for file in step_files(saved / "2"):
        for name, damage in {"cut": cut, "gone": lambda folder: (folder / file).unlink()}.items():
            copy = tmp_path / f"{name}-{str(file).replace('/', '-')}"
            found[name, str(file)] = restore_damaged(saved, copy, damage, caplog)
    needed = ["record/metadata", "state/manifest.ocdbt"]
    assert all(found[name, file] for name in ("cut", "gone") for file in needed)
    assert any(
        found["gone", str(file)]
        for file in step_files(saved / "2")
        if str(file).startswith("state/d/")
    )


@damages
def test_a_step_set_aside_can_be_saved_again(saved, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for name in ("damaged-2", "damaged-2-2"):
        (folder / "2" / "record" / "metadata").unlink()
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.restore(abstract(big_state(0)))[0] == 1
            assert (folder / name).exists()
            assert checkpoints.save(2, big_state(2), {})
            assert checkpoints.restore(abstract(big_state(0)))[0] == 2


@damages
def test_a_renamed_step_is_found(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    (folder / "2").rename(folder / "7")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(abstract(big_state(0)))[0] == 1


@damages
def test_nothing_good_left_names_every_step(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for step in "12":
        (folder / step / "record" / "metadata").write_text("{")
    for _ in range(2):  # also on the next start, which must not begin afresh without a word
        with Checkpoints(folder) as checkpoints, pytest.raises(ValueError, match="(damaged-.*){2}"):
            checkpoints.restore(abstract(big_state(0)))


@damages
def test_a_passing_failure_sets_nothing_aside(saved, tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    folder = tmp_path / "run"
    shutil.copytree(saved, folder)

    def fail(*args, **kwargs):
        raise ValueError("UNAVAILABLE: try again")

    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    with Checkpoints(folder) as checkpoints, pytest.raises(OSError, match="UNAVAILABLE"):
        checkpoints.restore(abstract(big_state(0)))
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


# --- failures while saving


@pytest.fixture
def small_files_only():
    """Within `limit()`, no file can grow beyond 1 MB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda on: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20 if on else soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("surfaces", ["save", "wait", "close", "exit"])
def test_the_failure_of_a_save_surfaces(tmp_path, small_files_only, surfaces):
    def state(step):
        return {"x": jax.random.normal(jax.random.key(step), (1 << 20,))}  # 4 MB

    like = abstract(state(0))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=1))
    assert checkpoints.save(1, state(1), {})
    checkpoints.wait()
    small_files_only(True)
    assert checkpoints.save(2, state(2), {})
    with pytest.raises(OSError, match="the checkpoint of step 2 in .* was not saved"):
        if surfaces == "save":
            checkpoints.save(3, state(3), {})
        elif surfaces == "exit":
            with checkpoints:
                pass
        else:
            getattr(checkpoints, surfaces)()
    small_files_only(False)
    if surfaces in ("save", "wait"):  # the run may go on, and save when there is room again
        assert checkpoints.latest() == 1 and same(checkpoints.restore(like)[1], state(1))
        assert checkpoints.save(2, state(2), {})
        checkpoints.close()
    with Checkpoints(tmp_path) as again:
        step, restored, _ = again.restore(like)
        assert step == (2 if surfaces in ("save", "wait") else 1) and same(restored, state(step))


def test_the_error_of_the_block_wins_over_that_of_the_save(tmp_path, small_files_only):
    with pytest.raises(KeyError, match="mine"), Checkpoints(tmp_path) as checkpoints:
        small_files_only(True)
        checkpoints.save(1, {"x": jax.random.normal(jax.random.key(0), (1 << 20,))}, {})
        raise KeyError("mine")


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_an_unwritable_directory_is_one_clear_error(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match="checkpoints cannot be written to .*choose another workdir"
    ):
        Checkpoints(tmp_path / below)


def test_what_cannot_be_saved_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for state in ({"a": np.zeros(3)}, {"a": 1.0}, {"a": jax.random.key(0)}):
            with pytest.raises(ValueError, match="a is a"):
                checkpoints.save(1, state, {})
        with pytest.raises(ValueError, match="must be JSON"):
            checkpoints.save(1, state_of(1), {"path": Path("x")})
        with pytest.raises(ValueError, match="at least one array"):
            checkpoints.save(1, {}, {})
        assert checkpoints.save(1, state_of(1), {})


@pytest.mark.parametrize(
    "fields", [{"every": 0}, {"keep": 0}, {"keep": True}, {"every": 1.5}, {"keep_period": -1}]
)
def test_bad_configuration_is_refused(fields):
    with pytest.raises(ValueError, match=f"checkpoint.{next(iter(fields))}=.*at least 1"):
        CheckpointConfig(**fields)


# --- kill -9


def child_environment():
    root = Path(__file__).parents[2]
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}


CHILD = """
import itertools, sys
import jax, numpy as np
from research.training.checkpoint import Checkpoints

def state(step):
    values = np.random.default_rng(step).standard_normal(1 << 18, np.float32)
    return {"x": jax.numpy.asarray(values)}

with Checkpoints(sys.argv[1]) as checkpoints:
    found = checkpoints.restore({"x": jax.ShapeDtypeStruct((1 << 18,), np.float32)})
    last = found[0] if found else 0
    print(last, not found or bool((found[1]["x"] == state(last)["x"]).all()), flush=True)
    for step in itertools.count(last + 1):
        checkpoints.save(step, state(step), {})
        print(step, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_was_committed(tmp_path):
    rng, steps = random.Random(0), [0]
    for _ in range(5):
        command = [sys.executable, "-c", CHILD, str(tmp_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(command, env=child_environment(), **pipes) as child:
            line = child.stdout.readline()
            for _ in range(rng.randrange(1, 5)):
                child.stdout.readline()
            time.sleep(0.03 * rng.random())  # a save of 1 MB takes about so long
            child.send_signal(signal.SIGKILL)
        last, equal = line.split()
        assert equal == "True" and int(last) >= steps[-1]
        steps.append(int(last))
    with Checkpoints(tmp_path) as checkpoints:
        last, state, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct((1 << 18,), np.float32)})
    assert last >= max(steps)
    assert np.array_equal(
        state["x"], np.random.default_rng(last).standard_normal(1 << 18, np.float32)
    )
    assert not list(tmp_path.glob("damaged-*"))
