"""Checkpoints read tile by tile: the same values as a whole read gives, on any mesh, and at an
error none."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from research import tree
from research.interop.load import open_checkpoint
from research.interop.storage import place, shards, tiles
from research.interop.storage.layout import rearrange, source_shape
from research.interop.storage.tiles import Source, cut, find_run
from research.models.model import Model
from research.models.spec import abstract
from research.parallel.mesh import make_mesh
from tests.interop.golden import write

SIZES = {"N": 4, "K": 2, "H": 6, "D": 5, "F": 3, "E": 3, "2": 2, "3": 3, "r": 2, "V": 0}
RUNS = {
    # pattern, part, index: whether a tensor has the slice in one run
    ("(N H) D -> D N H", None, ()): True,
    ("D (N H) -> N H D", None, ()): True,
    ("(N H~) D -> D N H", None, ()): True,
    ("1 D -> D 1", None, ()): True,
    ("V D -> V D", None, ()): True,
    ("D -> D", None, ()): True,
    ("(2 F) D -> 2 D F", 1, ()): True,
    ("(3 N H) -> 3 N H", 2, ()): True,
    ("(N H) D -> D N H | (K H) D -> D K H | (K H) D -> D K H", 2, ()): True,
    ("E F D -> E F D", None, (2,)): True,
    ("E D -> E D", None, (1, 3)): True,
    ("E (2 F) D -> E 2 F D", None, (1, 1)): True,
    ("D (3 N H) -> 3 D N H", 1, ()): False,
    ("E D (F 2) -> 2 E D F", 0, (1,)): False,
    ("(N H) D -> N H D | (N F) D -> N F D", 1, ()): False,
}


@pytest.mark.parametrize("tile_bytes", [1, 50, 10**6])
@pytest.mark.parametrize(("pattern", "part", "index"), RUNS)
def test_tiles_make_up_the_slice_of_the_whole_tensor(pattern, part, index, tile_bytes, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    x = np.random.default_rng(0).normal(size=source_shape(pattern, SIZES)).astype(np.float32)
    run = find_run(pattern, part, index, SIZES)
    assert (run is not None) == RUNS[pattern, part, index]
    if run is None:
        return

    def fill(start, memory):
        memory[:] = x.reshape(-1).view(np.uint8)[4 * start :][: memory.size]

    want = rearrange(x, pattern, SIZES)
    want = (want if part is None else want[part])[index]
    got, done = np.full_like(want, np.nan), 8 + 4 * run[0]
    for tile in cut(Source("a", 8, x.dtype, fill), *run, SIZES, x.dtype):
        place_of = tuple(slice(*bounds) for bounds in tile.at)
        assert tile.source == ("a", done)
        done += tile.nbytes
        got[place_of] = tile.read(np.empty(tile.nbytes, np.uint8))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("mesh", "tile_bytes"), [(None, 200), ("fsdp:2,tensor:4", 1000), (None, 4 * 2**20)]
)
@pytest.mark.parametrize("name", ["llama_gqa", "phi3", "mixtral", "gpt2", "gpt_oss"])
def test_a_model_is_the_same_whole_and_in_tiles(name, mesh, tile_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    devices = make_mesh(mesh) if mesh else None
    with open_checkpoint(write(name, tmp_path)) as checkpoint:
        model = Model(checkpoint.config)
        for dtype in (jnp.float32, jnp.bfloat16):
            wanted = abstract(model.specs(), np.dtype(dtype), devices, model.rules)
            params = tree.paths(checkpoint.restore(wanted))
            for path, x in params.items():
                parameter = checkpoint.parameters[path]
                whole = np.stack([parameter.read(index) for index in parameter.indices()])
                got = np.asarray(x).view(f"u{x.dtype.itemsize}")
                want = whole.reshape(x.shape).astype(x.dtype).view(f"u{x.dtype.itemsize}")
                np.testing.assert_array_equal(got, want, path)


def test_what_a_thread_raises_is_raised_and_a_wrapped_read_is_not_gone_around(tmp_path):
    with open_checkpoint(write("llama_gqa", tmp_path)) as checkpoint:
        parameter = checkpoint.parameters["layers/mlp/up"]
        leaf = jax.ShapeDtypeStruct(parameter.shape, np.float32)
        twice = type(parameter)(
            parameter.shape, "float32", parameter.stack, lambda index: 2 * parameter.read(index)
        )
        np.testing.assert_array_equal(place.place(twice, leaf), 2 * place.place(parameter, leaf))
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.truncate(5000)
        with pytest.raises(ValueError, match="bytes early; fetch it again"):
            place.place(parameter, leaf)


def test_transposed_values_of_any_type_keep_their_bits():
    for dtype in (np.float64, ml_dtypes.float8_e4m3fn, np.int16, ml_dtypes.bfloat16, np.bool_):
        values = np.frombuffer(np.random.default_rng(0).bytes(16 * 40), dtype)
        values = values[: len(values) // 40 * 40].reshape(40, -1)
        made = np.zeros(values.shape[::-1], dtype)
        shards._copy(made, values.T)
        bits = f"u{values.itemsize}"
        np.testing.assert_array_equal(made.view(bits), values.T.copy().view(bits))
