import json
import struct
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from research.interop.storage.safetensors import open_safetensors, write_safetensors
from research.interop.storage.tensors import Tensor

ARRAYS = {
    "a/b": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(3).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.float32),
    "ids": np.arange(5),
}


def streams(arrays):
    """The arrays as the writer takes them, a row at a time."""
    return {
        name: (Tensor(x.shape, str(x.dtype)), lambda x=x: iter(x)) for name, x in arrays.items()
    }


def test_what_is_written_row_by_row_is_what_the_library_reads(tmp_path):
    assert write_safetensors(tmp_path, streams(ARRAYS), metadata={"format": "pt"}) == [
        "model.safetensors"
    ]
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == ARRAYS.keys()
    for name, x in ARRAYS.items():
        assert (
            loaded[name].dtype == x.dtype
            and loaded[name].tobytes() == x.tobytes()
            and loaded[name].shape == x.shape
        )


def test_what_the_library_writes_is_read_whole_and_by_row(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    opened = open_safetensors(tmp_path)
    assert opened.names["half"] == Tensor((3,), "bfloat16")
    for name, x in ARRAYS.items():
        np.testing.assert_array_equal(opened.read(name), x)
    np.testing.assert_array_equal(opened.read_row("a/b", (1,)), ARRAYS["a/b"][1])
    assert opened.read_row("a/b", (2, 1)) == ARRAYS["a/b"][2, 1]


def test_parts_that_do_not_make_up_a_tensor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="came as 16 bytes, wanted 48"):
        write_safetensors(
            tmp_path, {"x": (Tensor((3, 4), "float32"), lambda: [np.zeros(4, np.float32)])}
        )


def test_a_shard_of_another_checkpoint_is_found_out(tmp_path):
    files = write_safetensors(tmp_path, streams(ARRAYS), shard_bytes=30)
    assert len(files) > 3
    (tmp_path / files[0]).write_bytes((tmp_path / files[1]).read_bytes())
    with pytest.raises(ValueError, match="not where|another file|lack"):
        open_safetensors(tmp_path)


def header(tensors, size=48):
    """A file with this header over `size` bytes of data."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * size


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 9,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{}",
        header([]),
        header({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 48]}}),
        header({"x": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 96]}}),
        header({"x": {"dtype": "F32", "shape": [3, 4], "data_offsets": [48, 0]}}),
        header({"x": {"dtype": "F32", "shape": [-3, -4], "data_offsets": [0, 48]}}),
        header({n: {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]} for n in "xy"}),
        header({"x": {"dtype": "C64", "shape": [6], "data_offsets": [0, 48]}}),
        header({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
    ids=range(13),
)
def test_a_hostile_header_is_refused_in_one_line_at_once(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        open_safetensors(tmp_path)
    assert "\n" not in str(error.value) and "model.safetensors" in str(error.value)
    assert time.monotonic() - start < 2


@given(data=st.data())
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_change_of_a_file_does_anything_but_be_read_or_refused(tmp_path, data):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    (tmp_path / "model.safetensors").write_bytes(content[:cut])
    try:
        opened = open_safetensors(tmp_path)
        for name in opened.names:
            opened.read(name)
    except ValueError:
        pass
