"""The token store: the same ids as the tokenizer's, made once, and never silently wrong."""

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings

from research.data.documents import Subset, TextDocuments
from research.data.files import FileDocuments
from research.data.tfds import TfdsDocuments
from research.data.tokens import BadRecords, tokenize


class Bytes:
    """Ids are the bytes of UTF-8; counts how often it is asked."""

    fingerprint = "bytes"

    def __init__(self, vocab_size=256):
        self.vocab_size, self.calls = vocab_size, 0

    def encode_batch(self, texts):
        self.calls += 1
        return [list(text.encode()) for text in texts]


@settings(deadline=None)  # files are slow on a busy machine
@given(st.lists(st.text(max_size=40), min_size=1, max_size=20))
def test_the_store_is_what_the_tokenizer_says(tmp_path_factory, contents):
    documents = TextDocuments({f"{i:03}": text for i, text in enumerate(contents)})
    if not any(contents):
        with pytest.raises(ValueError, match="no text"):
            tokenize(documents, Bytes(), tmp_path_factory.mktemp("cache"))
        return
    store = tokenize(documents, Bytes(), tmp_path_factory.mktemp("cache"))
    assert len(store) == len(contents) and store.ids.dtype == np.uint16
    for d, text in enumerate(contents):
        assert store.ids[store.offsets[d] : store.offsets[d + 1]].tolist() == list(text.encode())
        assert store.n_bytes[d] == len(text.encode())


def texts(n=30):
    return TextDocuments({f"{i:03}": f"document {i} " * (i + 1) for i in range(n)})


def test_it_is_made_once_for_each_content_split_and_tokenizer(tmp_path):
    tokenizer, documents = Bytes(), texts()
    first = tokenize(documents, tokenizer, tmp_path)
    assert (
        tokenize(documents, tokenizer, tmp_path).fingerprint == first.fingerprint
        and tokenizer.calls == 1
    )
    np.testing.assert_array_equal(tokenize(documents, tokenizer, tmp_path).ids, first.ids)
    tokenize(texts(29), tokenizer, tmp_path)
    tokenize(Subset(documents, np.arange(3)), tokenizer, tmp_path)
    assert tokenizer.calls == 3
    other = Bytes()
    other.fingerprint = "other"
    assert (
        tokenize(documents, other, tmp_path).fingerprint != first.fingerprint and other.calls == 1
    )


def test_a_vocabulary_beyond_16_bits_is_kept_whole(tmp_path):
    class Wide(Bytes):
        def encode_batch(self, texts):
            return [[70_000 + len(text)] for text in texts]

    store = tokenize(texts(2), Wide(2**16 + 5000), tmp_path)
    assert store.ids.dtype == np.uint32 and store.ids.tolist() == [70_011, 70_022]


def test_an_id_that_does_not_fit_is_refused(tmp_path):
    class Liar(Bytes):
        def encode_batch(self, texts):
            return [[70_000] for _ in texts]

    with pytest.raises(OverflowError):
        tokenize(texts(2), Liar(), tmp_path)


@pytest.mark.parametrize("file", ["ids.bin", "documents.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_cache_is_made_again_with_a_warning(tmp_path, caplog, file, damage):
    tokenizer = Bytes()
    first = tokenize(texts(), tokenizer, tmp_path)
    expected = first.ids.copy(), first.offsets.copy()
    path = next(tmp_path.rglob(file))
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        data[len(data) // 2] ^= 64
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    again = tokenize(texts(), tokenizer, tmp_path)
    assert tokenizer.calls == 2 and "damaged" in caplog.text
    np.testing.assert_array_equal(again.ids, expected[0])
    np.testing.assert_array_equal(again.offsets, expected[1])


def lines(path, bad):
    rows = [f'{{"text": "row {i}"}}' for i in range(20)]
    for index in bad:
        rows[index] = '{"text": '
    path.write_text("\n".join(rows))
    return FileDocuments(path, "", path.parent / "cache")


def test_bad_records_are_left_out_up_to_the_limit_and_the_next_is_named(tmp_path, caplog):
    documents = lines(tmp_path / "rows.jsonl", bad=(3, 7))
    with pytest.raises(BadRecords, match=r"rows.jsonl, record 3: .*max_bad_records"):
        tokenize(documents, Bytes(), tmp_path)
    with pytest.raises(BadRecords, match="rows.jsonl, record 7"):
        tokenize(documents, Bytes(), tmp_path, max_bad_records=1)
    store = tokenize(documents, Bytes(), tmp_path, max_bad_records=2)
    assert len(store) == 18 and len(store.bad_records) == 2
    assert "left out" in caplog.text and "record 3" in caplog.text
    with pytest.raises(BadRecords, match="rows.jsonl, record 7"):  # the cache knows, too
        tokenize(documents, Bytes(), tmp_path, max_bad_records=1)
    assert issubclass(BadRecords, ValueError)


class GraftForty(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": ((i, {"text": f"record {i} " * 20}) for i in range(40))}

    def _generate_examples(self):
        return iter(())


def test_a_flipped_byte_of_an_array_record_costs_that_record(tmp_path):
    builder = GraftForty(data_dir=tmp_path / "data", file_format="array_record")
    builder.download_and_prepare()
    file = next((tmp_path / "data").rglob("*.array_record*"))
    clean = tokenize(TfdsDocuments(builder, "train", {"text": "text"}), Bytes(), tmp_path / "clean")
    data = bytearray(file.read_bytes())
    data[1000] ^= 1  # among the records: they start the file, its index ends it
    file.write_bytes(data)
    documents = TfdsDocuments(builder, "train", {"text": "text"})
    with pytest.raises(BadRecords, match=rf"{file}, record \d+"):
        tokenize(documents, Bytes(), tmp_path / "damaged")
    store = tokenize(documents, Bytes(), tmp_path / "damaged", max_bad_records=1)
    assert len(store) == 39
    kept = {store.ids[a:b].tobytes() for a, b in zip(store.offsets, store.offsets[1:])}
    assert kept < {clean.ids[a:b].tobytes() for a, b in zip(clean.offsets, clean.offsets[1:])}


def test_progress_ends_with_all_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("research.data.tokens._CHUNK_CHARACTERS", 100)
    seen = []
    tokenize(texts(), Bytes(), tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (30, 30) and len(seen) > 3


def test_a_field_that_the_documents_lack_is_refused(tmp_path):
    with pytest.raises(ValueError, match="wanted targets"):
        tokenize(texts(), Bytes(), tmp_path, field="targets")
