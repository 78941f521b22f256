"""GGUF files: what is written is read, by us and by the `gguf` package; damage and malice get one
line at once."""

import os
import struct
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from research.interop.gguf import file as gguf_file
from research.interop.gguf import write as gguf_write
from research.interop.gguf.file import dequantizable, open_gguf
from research.interop.gguf.write import K_TYPES, TYPES, write_gguf

METADATA = {
    "general.architecture": "llama",
    "a.bool": True,
    "a.uint": 2**32 - 1,
    "a.negative": -7,
    "a.wide": 2**64 - 1,
    "a.float": 0.5,
    "a.text": "日本 🙂\n\x00",
    "a.empty": "",
    "a.strings": ["", "é", "x" * 300],
    "a.bools": [True, False],
    "a.ints": [1, -2, 3],
    "a.floats": [0.25, -1.0],
    "a.double": np.float64(0.1),
    "a.bytes": np.arange(5, dtype=np.uint8),
}
SHAPES = {"v": (96,), "blk.0.w": (5, 64), "blk.0.experts": (3, 4, 32)}
STORED = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def arrays(kind="F32"):
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(STORED.get(kind, np.float32))
        for name, shape in SHAPES.items()
    }


def entries(values, kind):
    return [(name, value.shape, kind, lambda value=value: value) for name, value in values.items()]


@pytest.fixture
def valid(tmp_path):
    """A small file of two tensors, as bytes."""
    path = tmp_path / "valid.gguf"
    write_gguf(path, METADATA, entries(arrays(), "Q8_0"))
    return path.read_bytes()


def plain(value):
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


# K-quants have rows of 256; see test_k_quants.py.
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in K_TYPES])
@pytest.mark.parametrize("alignment", [32, 256])
def test_what_is_written_is_read_by_us_and_by_the_package(kind, alignment, tmp_path):
    values, path = arrays(kind), tmp_path / "x.gguf"
    write_gguf(path, METADATA | {"general.alignment": alignment}, entries(values, kind))
    number = GGMLQuantizationType[kind]
    theirs = GGUFReader(path)
    found = {tensor.name: tensor for tensor in theirs.tensors}
    with open_gguf(path) as ours:
        assert list(ours.names) == list(values) == list(found) and set(ours.types.values()) == {
            kind
        }
        assert {key: plain(value) for key, value in ours.metadata.items()} == {
            **{key: plain(value) for key, value in METADATA.items()},
            "general.alignment": alignment,
        }
        fields = {
            key: field.contents()
            for key, field in theirs.fields.items()
            if not key.startswith("GGUF.")
        }
        assert fields == {key: plain(value) for key, value in ours.metadata.items()}
        for name, value in values.items():
            got = ours.read(name)
            assert found[name].data_offset % alignment == 0 and found[name].tensor_type == number
            assert ours.names[name] == gguf_file.Tensor(value.shape, got.dtype.name)
            if kind in STORED:
                assert got.dtype == value.dtype and got.tobytes() == value.tobytes()
            else:
                want = dequantize(quantize(value, number), number)
                assert np.array_equal(got, want) and got.dtype == np.float32
                assert np.array_equal(got, dequantize(found[name].data, number))


def test_what_the_packages_writer_writes_is_read(tmp_path):
    path, values = tmp_path / "x.gguf", arrays()
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("n", 7)
    writer.add_float64("f", 0.1)
    writer.add_array("s", ["a", "bc"])
    writer.add_array("i", [1, 2])
    writer.add_bool("b", False)
    for name, value in values.items():
        writer.add_tensor(
            name, quantize(value, GGMLQuantizationType.Q4_1), raw_dtype=GGMLQuantizationType.Q4_1
        )
    writer.add_tensor("half", values["v"].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as ours:
        read = {key: plain(value) for key, value in ours.metadata.items()}
        assert read == {
            "general.architecture": "llama",
            "n": 7,
            "f": 0.1,
            "s": ["a", "bc"],
            "i": [1, 2],
            "b": False,
        }
        for tensor in GGUFReader(path).tensors:
            got = ours.read(tensor.name)
            assert np.array_equal(got, dequantize(tensor.data, tensor.tensor_type)), tensor.name
        assert ours.read("half").dtype == np.float16 and ours.types["v"] == "Q4_1"


@pytest.mark.parametrize("kind", dequantizable())
def test_every_type_is_dequantized_as_the_package_does(kind, tmp_path, monkeypatch):
    number = GGMLQuantizationType[kind]
    block, block_bytes = GGML_QUANT_SIZES[number]
    monkeypatch.setattr(
        gguf_file, "_CHUNK_BYTES", 3 * block_bytes + 1
    )  # so that there are several, the last one short
    rng = np.random.default_rng(1)
    content = rng.integers(0, 256, (5, 2 * block_bytes), np.uint8)
    path = tmp_path / "x.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("w", content, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with np.errstate(all="ignore"):
        want = dequantize(content, number)
    with open_gguf(path) as ours:
        assert ours.names["w"].shape == want.shape == (5, 2 * block)
        assert np.array_equal(ours.read("w"), want, equal_nan=True)
        assert np.array_equal(ours.read_rows("w", 1, 4), want[1:4], equal_nan=True)


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_rows_are_read_alone(kind, tmp_path):
    path, values = tmp_path / "x.gguf", arrays(kind)
    write_gguf(path, {}, entries(values, kind))
    with open_gguf(path) as file:
        for name, (size, *_) in SHAPES.items():
            whole = file.read(name)
            for start, stop in [(0, size), (1, 3), (size - 1, size), (2, 2)]:
                assert np.array_equal(file.read_rows(name, start, stop), whole[start:stop])
            assert np.array_equal(file.read_row(name, 1), whole[1])
            with pytest.raises(
                ValueError, match=f"rows 1 to {size + 1} of '{name}', which has {size}"
            ):
                file.read_rows(name, 1, size + 1)


def test_reading_and_writing_take_little_more_than_the_tensor(tmp_path):
    value, path = np.zeros((2048, 2048), np.float32), tmp_path / "x.gguf"
    tracemalloc.start()
    try:
        write_gguf(path, {}, [("w", value.shape, "Q4_0", lambda: value)])
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with open_gguf(path) as file:
            file.read("w")
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Chunks are a million elements, 4 MB in float32; the package holds up to ten such at once. A
    # tensor is 16 MB here.
    assert written < 44e6 and read - value.nbytes < 44e6


def test_arrays_are_asked_for_one_after_the_other_and_may_come_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_write, "_CHUNK", 64)
    path, values, alive = tmp_path / "x.gguf", arrays(), []

    def give(name):
        alive.append(name)
        yield from np.array_split(values[name], 2) if values[name].ndim > 1 else [values[name]]
        assert alive.pop() == name and not alive

    write_gguf(
        path,
        {},
        [(name, shape, "Q8_0", lambda name=name: give(name)) for name, shape in SHAPES.items()],
    )
    with open_gguf(path) as file:
        for name, value in values.items():
            number = GGMLQuantizationType.Q8_0
            assert np.array_equal(file.read(name), dequantize(quantize(value, number), number))


@pytest.mark.parametrize(
    "metadata, entry, problem",
    [
        (
            {},
            ("w", (2, 48), "Q4_0", np.zeros((2, 48))),
            "rows of 48, wanted a multiple of 32 for Q4_0",
        ),
        (
            {},
            ("w", (2, 32), "IQ4_NL", np.zeros((2, 32))),
            "'IQ4_NL' is not written; wanted one of F32, F16",
        ),
        ({}, ("w", (2, 32), "Q8_0", np.full((2, 32), np.nan)), "NaN or infinity"),
        ({}, ("w", (2, 32), "F16", np.full((2, 32), 1e6)), "beyond 65504"),
        ({}, ("w", (2, 32), "F32", np.zeros((32, 2))), r"shape \[32, 2\] came, wanted \[2, 32\]"),
        ({}, ("w", (2, 32), "F32", [np.zeros((1, 32))]), "32 values came, wanted 64"),
        ({}, ("w", (2, 32), "F32", [np.zeros((1, 31))]), "part of 31 values"),
        ({}, ("w", (0, 32), "F32", np.zeros((0, 32))), "none of them empty"),
        ({}, ("w", (), "F32", np.zeros(())), "1 to 4 dimensions"),
        ({}, ("../w", (32,), "F32", np.zeros(32)), "path separator"),
        ({}, ("w" * 64, (32,), "F32", np.zeros(32)), "64 bytes, wanted 1 to 63"),
        ({"a": []}, None, "metadata 'a' is .*not empty"),
        ({"a": {}}, None, "metadata 'a' is .* of type dict"),
        ({"a": [1, "x"]}, None, "metadata 'a'"),
        ({"a": 2**70}, None, "metadata 'a'"),
        ({"a": "\ud800"}, None, "lone surrogate"),
        ({"general.alignment": 24}, None, "general.alignment is 24, wanted a power of two"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line_and_leaves_nothing(
    metadata, entry, problem, tmp_path
):
    path = tmp_path / "x.gguf"
    path.write_text("what was there")
    tensors = [("first", (32,), "F32", lambda: np.zeros(32, np.float32))]
    tensors += [(*entry[:3], lambda: entry[3])] if entry else []
    with pytest.raises(ValueError, match=problem) as caught:
        write_gguf(path, metadata, tensors)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "what was there" and os.listdir(tmp_path) == ["x.gguf"]


def test_names_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'v' is there twice"):
        write_gguf(
            tmp_path / "x.gguf", {}, 2 * [("v", (32,), "F32", lambda: np.zeros(32, np.float32))]
        )


# Hostile files, made by hand.


def text(value):
    content = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(content)) + content


def tensor(name="w", dims=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(*tensors, keys=(), data=4096, version=3, tensor_count=None, key_count=None):
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def key(name, kind, content):
    return text(name) + struct.pack("<I", kind) + content


STRINGS = struct.pack("<I", 8)
HOSTILE = {
    "empty": (b"", "empty"),
    "three bytes": (b"GGU", "3 bytes? at byte 0|claims 4 bytes"),
    "another format": (b"\x93NUMPY" + bytes(100), "wanted b'GGUF'"),
    "version 1": (file(version=1), "version 1, wanted 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^63 strings in 49 bytes": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**63),
        "claims 9223372036854775808 strings",
    ),
    "2^63 numbers": (
        file(keys=[key("k", 9, struct.pack("<IQ", 10, 2**63))]),
        "claims 73786976294838206464 bytes",
    ),
    "2^63 tensors": (file(tensor_count=2**63), "claims 9223372036854775808 tensors"),
    "2^63 keys": (file(key_count=2**63), "claims 9223372036854775808 keys"),
    "a million keys": (file(key_count=10**6, data=10**8), "claims 1000000 keys"),
    "three million empty strings": (
        file(keys=[key("k", 9, STRINGS + struct.pack("<Q", 3 * 10**6))], data=25 * 10**6),
        "claims 3000000 strings",
    ),
    "a string beyond the end": (
        file(keys=[key("k", 8, struct.pack("<Q", 2**40))]),
        "claims 1099511627776 bytes",
    ),
    "a key beyond the end": (
        file(keys=[struct.pack("<Q", 2**64 - 1)]),
        "a key of 18446744073709551615 bytes",
    ),
    "a key of no UTF-8": (file(keys=[key(b"\xff\xfe", 4, bytes(4))]), "not UTF-8"),
    "a value of no UTF-8": (file(keys=[key("k", 8, text(b"\xc3\x28"))]), "not UTF-8"),
    "a key of nothing": (file(keys=[key("", 4, bytes(4))]), "key '' is empty"),
    "a key twice": (file(keys=2 * [key("k", 4, bytes(4))]), "key 'k' is there twice"),
    "an unknown type of value": (file(keys=[key("k", 13, bytes(4))]), "of type 13, wanted 0 to 12"),
    "a nested array": (
        file(keys=[key("k", 9, struct.pack("<IQ", 9, 1) + bytes(20))]),
        "array of type 9",
    ),
    "an alignment of nothing": (
        file(keys=[key("general.alignment", 4, bytes(4))]),
        "general.alignment is '0'",
    ),
    "an alignment in words": (
        file(keys=[key("general.alignment", 8, text("32"))]),
        "general.alignment is '32'",
    ),
    "an alignment of 24": (
        file(keys=[key("general.alignment", 4, struct.pack("<I", 24))]),
        "wanted a power of two",
    ),
    "no dimensions": (file(tensor(dims=())), "0 dimensions"),
    "2^31 dimensions": (
        file(text("w") + struct.pack("<I", 2**31) + bytes(64)),
        "2147483648 dimensions",
    ),
    "a dimension of 0": (file(tensor(dims=(32, 0))), r"\[0, 32\]"),
    "a dimension of 2^63": (file(tensor(dims=(2**63,))), "ends at byte 36893488147419103[0-9]* of"),
    "dimensions whose product is 2^64": (file(tensor(dims=(2**32, 2**32))), "ends at byte"),
    "part of a block": (file(tensor(dims=(33,), kind=8)), "whole blocks of 32"),
    "an unknown tensor type": (file(tensor(kind=5)), "is of type 5, wanted one of F32, F16"),
    "a tensor type of 2^32-1": (file(tensor(kind=2**32 - 1)), "is of type 4294967295"),
    "data beyond the end": (file(tensor(offset=4096)), "ends at byte 4288 of"),
    "an offset of 2^64-32": (file(tensor(offset=2**64 - 32)), "ends at byte"),
    "an unaligned offset": (file(tensor(offset=4)), "begins at 4, wanted a multiple of 32"),
    "overlapping tensors": (
        file(tensor("a", (64,)), tensor("b", offset=128)),
        "'a' and 'b' overlap",
    ),
    "the same data twice": (file(tensor("a"), tensor("b")), "'a' and 'b' overlap"),
    "a tensor twice": (file(tensor(), tensor(offset=128)), "'w' is there twice"),
    "a name that leads out": (file(tensor("../../etc/x")), "path separator"),
    "a name with a backslash": (file(tensor("a\\b")), "path separator"),
    "a name with a line break": (file(tensor("a\nb")), r"'a\\nb'.*control"),
    "a name with an escape": (file(tensor("a\x1b[31m")), "control"),
}


@pytest.mark.parametrize("content, problem", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_get_one_line_at_once(content, problem, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=problem) as caught:
            open_gguf(path)
        took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (
        str(caught.value).startswith(str(path))
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 700
    )
    assert took < 2 and peak < 1e6 + 2 * len(content)


@pytest.mark.parametrize("place", ["missing", "folder", "pipe"])
def test_what_is_no_file_gets_one_line(place, tmp_path):
    path = tmp_path / "x.gguf"
    if place == "folder":
        path.mkdir()
    elif place == "pipe":
        os.mkfifo(path)
    with pytest.raises(ValueError, match="missing or no file"):
        open_gguf(path)


def test_a_type_without_dequantizer_is_refused_when_read(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(file(tensor(dims=(256,), kind=GGMLQuantizationType.Q8_K)))
    with open_gguf(path) as opened:
        assert opened.types == {"w": "Q8_K"}
        with pytest.raises(
            ValueError, match="'w' is of type Q8_K; wanted one of F64, F32, F16, BF16, .*Q4_0"
        ):
            opened.read("w")


def test_a_file_cut_while_it_is_open_is_noticed(valid, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(valid)
    with open_gguf(path) as opened:
        os.truncate(path, len(valid) - 200)
        with pytest.raises(ValueError, match="ends within 'blk.0.experts'; it was cut short"):
            opened.read("blk.0.experts")


@given(data=st.data())
@settings(deadline=2000, max_examples=300)
def test_damaged_files_open_or_raise_value_errors(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    if not path.exists():
        write_gguf(path, METADATA, entries(arrays(), "Q8_0"))
    content = bytearray(path.read_bytes())
    damaged = path.with_suffix(".damaged")
    end = content.index(
        bytes(16), content.rindex(b"blk.0.experts") + 60
    )  # of the table; data may be anything
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end))
        extreme = st.sampled_from(
            [bytes(8), b"\xff" * 8, struct.pack("<Q", 2**63), struct.pack("<Q", 2**31 - 1)]
        )
        new = data.draw(st.binary(min_size=1, max_size=4) | extreme)
        content[at : at + len(new)] = new
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    damaged.write_bytes(content)
    try:
        with open_gguf(damaged) as opened:
            assert all(opened.read(name).shape == opened.names[name].shape for name in opened.names)
    except ValueError as error:
        assert "\n" not in str(error)
