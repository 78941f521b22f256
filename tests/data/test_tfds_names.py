"""TFDS's data sets by name: all families are found offline, and columns have a right default."""

import os
import sys

import pytest
import tensorflow_datasets as tfds

from research.data.conversations import read_spelt
from research.data.sources import open_source
from research.data.tfds import _supervised, find_builder


@pytest.mark.parametrize(
    "name",
    [
        # One of each package that TFDS itself does not import, and those of its `datasets`.
        "c4/en",
        "wikipedia/20230601.de",
        "wiki40b/en",
        "wmt19_translate/de-en",
        "cnn_dailymail",
        "xsum",
        "glue/sst2",
        "asset",
        "higgs",
        "istella",
        "lm1b",
        "imdb_reviews",
        "ag_news_subset",
    ],
)
def test_the_builder_of_every_family_is_found_offline(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    builder = find_builder(name)
    assert builder.name == name.split("/")[0] and builder.info.features
    assert "tensorflow" not in sys.modules


def test_every_text_data_set_that_tfds_has_is_registered():
    find_builder("imdb_reviews")
    names = "gigaword multi_news ted_hrlr_translate opus piqa blimp pg19 math_dataset openbookqa"
    assert all(tfds.builder_cls(name).name == name for name in names.split())


@pytest.mark.parametrize(
    ("name", "wanted", "query"),
    [
        ("cnn_dailymail", "pairs", "inputs=article&targets=highlights"),
        ("xsum", "pairs", "inputs=document&targets=summary"),
        ("wmt19_translate/de-en", "pairs", "inputs=de&targets=en"),
        ("wmt16_translate/ro-en", "pairs", "inputs=ro&targets=en"),
        ("imdb_reviews", "labels", ""),  # its columns have the usual names
        ("ag_news_subset", "labels", "text=description&label=label"),
        ("c4/en", "texts", ""),
    ],
)
def test_columns_are_by_default_what_the_data_set_calls_input_and_target(
    name, wanted, query, tmp_path, monkeypatch
):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    info = find_builder(name).info
    assert _supervised(info.supervised_keys, tuple(info.features), wanted) == query


def test_an_unknown_name_and_one_that_needs_tensorflow_end_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="cannot prepare tfds:no_such: DatasetNotFoundError"):
        find_builder("no_such")
    with pytest.raises(ValueError, match="needs TensorFlow, prepare it where that is") as caught:
        find_builder("super_glue/boolq")
    assert "\n" not in str(caught.value)


class GraftNews(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"article": tfds.features.Text(), "highlights": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("article", "highlights"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(40):
            yield i, {"article": f"long {i}", "highlights": f"short {i}"}


class GraftTranslate(GraftNews):
    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.Translation(languages=("de", "en")),
            supervised_keys=("de", "en"),
        )

    def _generate_examples(self):
        for i in range(40):
            yield i, {"de": f"lang {i}", "en": f"long {i}"}


@pytest.mark.parametrize(("name", "start"), [("graft_news", "short"), ("graft_translate", "long")])
def test_articles_and_translations_are_pairs_without_a_query(name, start, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    source = open_source(f"tfds:{name}", tmp_path / "cache", "pairs")
    document = source.train[0]
    assert document["targets"].startswith(start)
    assert document["targets"].split()[1] == document["inputs"].split()[1]
    if name == "graft_translate":
        query = open_source(f"tfds:{name}?inputs=en&targets=de", tmp_path / "cache", "pairs")
        assert query.train[0]["inputs"] == document["targets"]
    with pytest.raises(ValueError, match=r"\?text=FIELD"):
        open_source(f"tfds:{name}", tmp_path / "cache")


def test_an_edit_of_prepared_files_changes_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setattr("research.data.content._SETTLED_SECONDS", 0.0)
    first = open_source("tfds:graft_news", tmp_path / "cache", "pairs")
    again = open_source("tfds:graft_news", tmp_path / "cache", "pairs", first.fingerprint)
    assert again.fingerprint == first.fingerprint and again.train.rules == 2
    file = next(tmp_path.rglob("*train.array_record*"))
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_source("tfds:graft_news", tmp_path / "cache", "pairs").fingerprint != (
        first.fingerprint
    )


class GraftHelpful(GraftNews):
    """Preferences as Anthropic publishes them: the prompt is what both dialogues begin with."""

    def _info(self):
        features = {"chosen": tfds.features.Text(), "rejected": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        for i in range(40):
            start = f"\n\nHuman: Is {i} even?\n\nAssistant: "
            yield i, {"chosen": f"{start}{i % 2 == 0}.", "rejected": f"{start}No idea."}


def test_preferences_are_read_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    source = open_source("tfds:graft_helpful", tmp_path / "cache", "preferences")
    document = source.train[0]
    [asked, said], _ = read_spelt(document["chosen"])
    number = int(asked["content"].split()[1])
    assert asked == {"role": "user", "content": f"Is {number} even?"}
    assert said == {"role": "assistant", "content": f"{number % 2 == 0}."}
    assert read_spelt(document["rejected"])[0][1]["content"] == "No idea."
    assert len(source.train) + len(source.heldout) == 40
