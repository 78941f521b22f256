"""Texts with a tag for each word as windows: what data sets spell, and which token has a tag."""

import json
import random

import numpy as np
import pytest

from research.data.config import DataConfig
from research.data.corpus import open_corpus
from research.data.entities import read_entities
from research.data.files import FileDocuments
from research.data.labelled import named_labels
from research.data.tags import read_tagged, tag_windows
from research.data.tokenizers import load_tokenizer
from research.data.windows import WindowOptions

BYTES = load_tokenizer("bytes")
WORDS, TAGS = ["Zoë", "lives", "in", "New", "York", "."], ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]
TEXT = "Zoë lives in New York ."
NAMES = ("B-LOC", "B-PER", "I-LOC", "O")
BOUNDS = [[0, 3], [4, 9], [10, 12], [13, 16], [17, 21], [22, 23]]
WANTED = [[*bounds, tag] for bounds, tag in zip(BOUNDS, TAGS)]
SPANS = [{"start": 0, "end": 3, "label": "PER"}, {"start": 13, "end": 21, "label": "LOC"}]
CONLL = "-DOCSTART- -X- O\n\n" + "".join(f"{w} X {t}\n" for w, t in zip(WORDS, TAGS)) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json.dumps({"tokens": WORDS, "ner_tags": TAGS})),
        ("a.json", json.dumps([{"words": WORDS, "labels": TAGS}])),
        ("a.jsonl", json.dumps({"text": TEXT, "entities": SPANS})),
        ("a.jsonl", json.dumps({"text": TEXT, "spans": [[0, 3, "PER"], [13, 21, "LOC"]]})),
        ("a.conll", CONLL),
        ("a.bio", "# text = ...\n" + CONLL.replace(" ", "\t").replace("\n", "\r\n")),
    ],
)
def test_every_spelling_gives_the_same_tags(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    documents = FileDocuments(tmp_path / name, "", tmp_path / "cache", "tags")
    [document] = [documents[n] for n in range(len(documents))]
    assert document["text"] == TEXT and json.loads(document["tags"]) == WANTED


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": WORDS, "tags": TAGS[1:]}, "6 words but 5 tags"),
        ({"tokens": [], "tags": []}, "is no list of words"),
        ({"tokens": ["a"], "tags": [None]}, "tag None is no name"),
        ({"tokens": ["a"], "tags": [-1]}, "tag -1 is no name"),
        ({"text": TEXT, "entities": [[0, 99, "PER"]]}, "is not in a text of 23"),
        ({"text": TEXT, "entities": [[0, 3, "A"], [1, 9, "B"]]}, "overlaps another"),
    ],
)
def test_what_fits_no_word_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        read_tagged(row, {name: name for name in row})


def made(folder, rows, length, overlap=4):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = FileDocuments(folder / "a.jsonl", "", folder / "cache", "tags")
    options = WindowOptions(BYTES, folder / "cache", length, overlap, labels=NAMES)
    return tag_windows(documents, options)


@pytest.mark.parametrize("length", [40, 12])
def test_a_tag_is_at_its_words_first_token_once(tmp_path, length):
    windows = made(tmp_path, [{"tokens": WORDS, "tags": TAGS}] * 2, length)
    assert len(windows) == (2 if length == 40 else 8)
    for record in range(2):
        found = []
        for window in (windows[n + record * len(windows) // 2] for n in range(len(windows) // 2)):
            for at in np.flatnonzero(window["labelled"]):
                letter = BYTES.decode([window["tokens"][at]])
                found.append((letter, NAMES[window["labels"][at]]))
            assert (window["segments"] >= window["labelled"]).all()
        assert found == [(word[0], tag) for word, tag in zip(WORDS, TAGS)]


def test_numbers_get_their_names_from_the_config(tmp_path):
    rows = [{"tokens": WORDS, "ner_tags": [1, 0, 0, 2, 3, 0]} for _ in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = "O,B-PER,B-LOC,I-LOC,B-ORG"
    data = DataConfig(str(tmp_path / "a.jsonl"), "bytes", label_names=names)
    corpus = open_corpus(data, wanted="tags")
    assert corpus.labels == tuple(names.split(","))
    window = corpus.heldout_windows(40, 4)[0]
    assert window["labels"][window["labelled"] > 0].tolist() == [1, 0, 0, 2, 3, 0]
    for given in ("O,B-PER,B-LOC", "O,O,A,B"):
        with pytest.raises(ValueError, match="must name the classes 0, 1, ... of the data"):
            named_labels(("0", "1", "2", "3"), given)


def test_entities_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    rng = random.Random(0)
    kinds = ["O", *(f"{kind}-{label}" for kind in "BIES" for label in ("A", "B"))]
    for _ in range(500):
        tags = [rng.choice(kinds) for _ in range(rng.randint(1, 8))]
        assert read_entities(tags) == [tuple(one) for one in seqeval.get_entities(tags)], tags


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        (TAGS, [("PER", 0, 0), ("LOC", 3, 4)]),
        (["I-A", "I-A", "B-A", "I-B"], [("A", 0, 1), ("A", 2, 2), ("B", 3, 3)]),
        (["B-A", "E-A", "S-A", "O"], [("A", 0, 1), ("A", 2, 2)]),
        (["NOUN", "NOUN", "VERB"], [("NOUN", 0, 1), ("VERB", 2, 2)]),
    ],
)
def test_tags_of_every_scheme_mark_their_entities(tags, wanted):
    assert read_entities(tags) == wanted
