"""Sources: what is held out, what the provenance says, and that TensorFlow stays out."""

import ast
import gzip
import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

import hypothesis.strategies as st
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings

from research.data.documents import HELDOUT_MAX, UnreadableRecord, heldout_mask, texts
from research.data.sources import open_source
from research.data.stdlib import open_stdlib


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def library(tmp_path):
    """A small standard library: 60 modules, some things to leave out, one file in another
    encoding."""
    root = tmp_path / "lib"
    for i in range(60):
        path = root / f"package{i % 3}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# módulo {i}\r\nvalue = {i}\n" * (i % 5 + 1))
    for left_out in ("test", "package0/tests", "package1/idle_test", "site-packages"):
        (root / left_out).mkdir()
        (root / left_out / "x.py").write_text("x = 1\n")
    (root / "latin.py").write_bytes(b"# \xe9\n")
    (root / "readme.txt").write_text("not source\n")
    return root


class GraftTrainOnly(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SIZES = {"train": 40}

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"text": tfds.features.Text(), "de": tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, size) for split, size in self.SIZES.items()}

    def _generate_examples(self, split, size):
        for i in range(size):
            yield i, {"text": f"{split} {i} " + "words " * 20, "de": f"{split} {i} Worte"}


class GraftWithValidation(GraftTrainOnly):
    SIZES = {"train": 40, "validation": 5}


def test_stdlib_is_the_library_split_by_the_hash_of_the_path(library, tmp_path):
    train, heldout, facts = open_stdlib(tmp_path / "cache", library)
    got = {
        part: [documents[i] for i in range(len(documents))]
        for part, documents in (("t", train), ("h", heldout))
    }
    expected = sorted(
        path.relative_to(library).as_posix() for path in library.glob("package?/*.py")
    )
    assert (
        sorted(d["path"] for part in got.values() for d in part) == expected
        and facts["files"] == 60
    )
    for part, documents in got.items():
        assert [d["path"] for d in documents] == sorted(d["path"] for d in documents)
        for document in documents:
            assert (
                document["text"].encode() == (library / document["path"]).read_bytes()
            )  # line ends too
            bits = int.from_bytes(hashlib.sha256(document["path"].encode()).digest()[:8], "big")
            assert (bits % 20 == 0) == (part == "h")


def test_stdlib_is_rebuilt_when_a_file_changes_but_not_its_size(library, tmp_path):
    train, heldout, _ = open_stdlib(tmp_path / "cache", library)
    again, _, _ = open_stdlib(tmp_path / "cache", library)
    assert again.fingerprint == train.fingerprint
    changed = library / train[0]["path"]
    changed.write_bytes(changed.read_bytes().replace(b"value", b"VALUE"))
    other, _, _ = open_stdlib(tmp_path / "cache", library)
    assert other.fingerprint != train.fingerprint
    assert "VALUE" in other[0]["text"] and "VALUE" not in train[0]["text"]


def test_the_gzip_figure_is_that_of_the_heldout_files_of_this_python(cache):
    source = open_source("stdlib", cache)
    root = Path(sysconfig.get_path("stdlib"))
    joined = b"".join((root / path).read_bytes() for path in source.provenance["heldout_files"])
    packed = subprocess.run(
        ["gzip", "-9nc"], input=joined, stdout=subprocess.PIPE, check=True
    ).stdout
    # Python's gzip and the program differ in the header's bytes and a zlib version, never by 1 % of
    # 50 kB.
    assert source.provenance["gzip_bits_per_byte"] == pytest.approx(
        8 * len(packed) / len(joined), rel=0.01
    )
    assert source.provenance["gzip_bits_per_byte"] == 8 * len(
        gzip.compress(joined, 9, mtime=0)
    ) / len(joined)
    assert source.provenance["heldout_bytes"] == len(joined)
    assert 50_000 < len(joined) < 1_000_000  # cheap to evaluate, yet no lottery
    left_out = {"test", "tests", "idle_test"}
    assert not any(left_out & set(Path(path).parts) for path in source.provenance["heldout_files"])
    assert "heldout_files" in source.provenance and source.provenance["train_documents"] == len(
        source.train
    )


def test_the_whole_data_layer_runs_without_tensorflow(library, tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from research.data import loader, packing, tokens, stdlib, pairs, sources, "
        "mixture\n"
        "class Bytes:\n"
        "    vocab_size, fingerprint = 256, 'bytes'\n"
        "    def encode_batch(self, texts): return [list(text.encode()) for text in texts]\n"
        f"train, heldout, _ = stdlib.open_stdlib(Path({str(tmp_path / 'cache')!r}), "
        f"Path({str(library)!r}))\n"
        f"store = tokens.tokenize(train, Bytes(), Path({str(tmp_path / 'cache')!r}))\n"
        "windows = packing.PackedWindows(store, 33, seed=0, bos_id=None, eos_id=0)\n"
        "with loader.train_batches(windows, lambda w, rng: dict(w), seed=0, global_batch=4) as "
        "batches:\n"
        "    step, batch = next(batches)\n"
        "assert step == 0 and batch['tokens'].shape == (4, 33)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    # TFDS tells its progress on standard output; ours is kept clean for JSON.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_no_file_of_the_data_layer_imports_jax_or_tensorflow():
    import research.data

    for file in Path(research.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [getattr(node, "module", None)]
            )
            for name in names:
                assert str(name).split(".")[0] not in ("jax", "tensorflow"), file


@settings(deadline=None)  # the machine may be busy
@given(
    st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=200),
    st.sets(st.text(min_size=9), max_size=20),
)
def test_no_document_changes_sides_when_others_come(names, others):
    before = dict(zip(sorted(names), heldout_mask(sorted(names))))
    after = dict(
        zip([*sorted(names), *sorted(others)], heldout_mask([*sorted(names), *sorted(others)]))
    )
    assert any(before.values()) and not all(before.values())
    by_hash = {
        n for n in names if int.from_bytes(hashlib.sha256(n.encode()).digest()[:8], "big") % 20 == 0
    }
    if 0 < len(by_hash) < len(names):
        assert {n for n, held in before.items() if held} == by_hash
        assert all(after[n] == held for n, held in before.items())


def test_the_heldout_part_is_a_twentieth_and_bounded():
    few = heldout_mask(f"row{i}" for i in range(10_000))
    assert 0.04 < few.mean() < 0.06  # 500 expected, 22 is a standard deviation
    assert heldout_mask(f"row{i}" for i in range(30_000)).sum() == HELDOUT_MAX
    with pytest.raises(ValueError, match="at least 2"):
        heldout_mask(["alone"])


def test_tfds_uses_its_own_validation_split_or_the_hash(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    source = open_source("tfds:graft_with_validation", cache)
    assert (len(source.train), len(source.heldout)) == (40, 5)
    assert {text.split()[0] for text in texts(source.heldout)} == {"validation"}
    source = open_source("tfds:graft_train_only?inputs=text&targets=de", cache, "pairs")
    assert len(source.train) + len(source.heldout) == 40 and len(source.heldout) >= 1
    assert source.train.fields == ("inputs", "targets")
    assert set(source.train[0]) == {"inputs", "targets", "path"} and source.train[0][
        "targets"
    ].endswith("Worte")
    with pytest.raises(ValueError, match="de, text"):
        open_source("tfds:graft_train_only?text=body", cache)


def test_a_flipped_byte_in_an_array_record_spoils_one_record_and_names_it(
    tmp_path, monkeypatch, cache
):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    open_source("tfds:graft_with_validation", cache)
    file = next(tmp_path.rglob("*train.array_record*"))
    data = bytearray(file.read_bytes())
    data[1000] ^= 1  # among the records: they start the file, its index ends it
    file.write_bytes(data)
    source = open_source("tfds:graft_with_validation", cache)
    errors = []
    for i in range(40):
        try:
            source.train[i]
        except UnreadableRecord as error:
            errors.append(error)
    assert len(errors) == 1
    assert (
        errors[0].file == str(file)
        and 0 <= errors[0].index < 40
        and f"record {errors[0].index}" in str(errors[0])
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/at/all", "does not exist"),
        ("tfds:no_such_data_set_here", "cannot prepare tfds:no_such_data_set_here"),
        ("stdlib?text=body", "has the fields text"),
    ],
)
def test_what_cannot_be_opened_gets_one_line(name, message, cache):
    with pytest.raises(ValueError, match=message) as caught:
        open_source(name, cache)
    assert "\n" not in str(caught.value)


def test_a_python_without_its_sources_gets_one_line(tmp_path):
    with pytest.raises(ValueError, match="without its library's source"):
        open_stdlib(tmp_path / "cache", tmp_path)
