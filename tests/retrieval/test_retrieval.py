"""Passages, the vectors of them on disk, and the nearest ones."""

import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from research.data.grounding import NOTHING
from research.data.tokenizers import load_tokenizer
from research.infer.sentences import SentenceSettings
from research.retrieval import index as indices
from research.retrieval import knowledge as knowledges
from research.retrieval.citations import cite
from research.retrieval.index import Clustered, Exact, list_count, make_index, predicted_bytes
from research.retrieval.knowledge import Hit, learn
from research.retrieval.passages import Passage, passages
from research.retrieval.vector_file import VectorFile
from research.retrieval.vector_store import VectorStore

SIZE = 16


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def around_centres(count: int, seed: int = 0) -> np.ndarray:
    """Vectors in clusters, as those of texts are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, SIZE))
    return unit(centres[rng.integers(0, 40, count)] + 0.4 * rng.standard_normal((count, SIZE)))


@pytest.mark.parametrize("tokens", [6, 25, 200])
def test_passages_are_where_they_say(tokens):
    text = "\n  First one. Second one!\n\nA new paragraph,\twith more.  \n"
    found = passages("a", text, len, tokens)
    assert all(text[one.start : one.stop] == one.text and one.text.strip() for one in found)
    joined = "".join("".join(one.text.split()) for one in found)
    assert joined == "".join(text.split())
    assert passages("a", " \n ", len) == []


def test_a_store_that_was_cut_goes_on_and_another_encoders_is_refused(tmp_path):
    store = VectorStore(tmp_path / "s", SIZE, "one")
    vectors = around_centres(5)
    store.add(["a", "b", "c"], vectors[:3])
    with open(tmp_path / "s/vectors.f32", "ab") as file:
        file.write(b"half")  # killed between the files
    with open(tmp_path / "s/keys.bin", "r+b") as file:
        file.truncate(40)  # killed within a key
    again = VectorStore(tmp_path / "s", SIZE, "one")
    assert again.rows(["c", "b", "a"]).tolist() == [-1, 1, 0]
    again.add(["c"], vectors[4:])
    last = VectorStore(tmp_path / "s", SIZE, "one")
    np.testing.assert_array_equal(last.vectors_from().take([2, 0]), vectors[[4, 0]])
    np.testing.assert_array_equal(last.vectors_from(1).block(0, 9), vectors[[1, 4]])
    with pytest.raises(ValueError, match="has vectors of 'one', wanted those of 'two'"):
        VectorStore(tmp_path / "s", SIZE, "two")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(ValueError, match="has other files"):
        VectorStore(tmp_path / "full", SIZE, "one")


def test_exact_search_is_that_of_all_vectors_at_once(monkeypatch):
    monkeypatch.setattr(indices, "_BLOCK", 7)
    vectors, queries = around_centres(50), around_centres(4, seed=1)
    vectors[30] = vectors[3]  # equal ones: the earlier stands in front
    scores, rows = Exact(vectors).search(queries, 10)
    every = queries @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-every, axis=1, kind="stable")[:, :10])
    # BLAS may sum another order in products of other sizes: float32's rounding of sums up to 1.
    np.testing.assert_allclose(scores, np.take_along_axis(every, rows, 1), rtol=0, atol=2.4e-7)


def test_lists_find_nearly_all_and_are_read_again(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="the extra [apply] has it")
    monkeypatch.setattr(indices, "EXACT_UP_TO", 1000)
    vectors, queries = around_centres(6000), around_centres(50, seed=1)
    file = tmp_path / "lists.faiss"
    vectors.tofile(tmp_path / "vectors.f32")
    made = make_index(VectorFile(tmp_path / "vectors.f32", SIZE, 6000), file)
    assert isinstance(made, Clustered) and made.lists.nlist == list_count(6000) == 64
    scores, rows = made.search(queries, 10)
    _, exact = Exact(vectors).search(queries, 10)
    found = [len(set(a) & set(b)) for a, b in zip(rows, exact)]
    assert np.mean(found) / 10 >= 0.9
    # Scores are those of the vectors, not of codes.
    np.testing.assert_allclose(scores, np.einsum("qkd,qd->qk", vectors[rows], queries), atol=1e-6)
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(make_index(vectors, file).search(queries, 10)[1], rows)
    assert file.stat().st_mtime_ns == before
    # Codes and numbers alone are in the file; what is predicted holds them twice.
    assert file.stat().st_size < predicted_bytes(6000, SIZE)


def test_many_passages_without_the_package_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(indices, "EXACT_UP_TO", 10)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ValueError, match="pip install 'faiss-cpu'"):
        make_index(around_centres(11))


def bags_of_words(asked: list[str], turn: int = 0):
    """An `embed` that adds up a vector of each word, and keeps the texts that it was given."""

    def embed(model, params, tokenizer, texts, settings):
        asked.extend(texts)
        rows = np.zeros((len(texts), SIZE), np.float32)
        for row, text in zip(rows, texts):
            for word in text.lower().split():
                seed = zlib.crc32(word.strip(".?").encode()) + turn
                row += np.random.default_rng(seed).standard_normal(SIZE)
        return rows

    return embed


ENCODER = SimpleNamespace(
    model=SimpleNamespace(config=SimpleNamespace(d_model=SIZE)),
    params={},
    tokenizer=load_tokenizer("bytes"),
    sentence_settings=SentenceSettings(max_tokens=30),
)
DOCUMENTS = [("a.txt", "Cats purr loudly.\n\nDogs bark at night."), ("b.txt", "Trains run late.")]


def test_what_is_known_is_found_and_embedded_once(tmp_path, monkeypatch, capsys):
    asked: list[str] = []
    monkeypatch.setattr(knowledges, "embed", bags_of_words(asked))
    told: list[tuple[int, int]] = []
    knowledge = learn(DOCUMENTS, ENCODER, "one", tmp_path, lambda *done: told.append(done))
    assert told == [(3, 3)] and "3 passages; their index takes" in capsys.readouterr().err
    [[hit]] = knowledge.find(["when do dogs bark?"], 1)
    assert hit.passage == Passage("a.txt", 19, 38, "Dogs bark at night.")
    assert DOCUMENTS[0][1][19:38] == hit.passage.text
    # A changed document, one that is gone and a passage that stands twice.
    asked.clear()
    changed = [("a.txt", "Dogs bark at night.\n\nCows moo."), ("c.txt", "Cows moo.")]
    knowledge = learn(changed, ENCODER, "one", tmp_path)
    assert "Cows moo." in asked and "Dogs bark at night." not in asked
    found = knowledge.find(["cows moo"], 2)[0]
    assert [one.passage.source for one in found] == ["a.txt", "c.txt"]
    monkeypatch.setattr(knowledges, "embed", bags_of_words(asked, turn=1))
    with pytest.raises(ValueError, match="has vectors of other weights than those of one"):
        learn(DOCUMENTS, ENCODER, "one", tmp_path)
    with pytest.raises(ValueError, match="have no passage"):
        learn([("a", " ")], ENCODER, "one", tmp_path)


HITS = [
    Hit(Passage("a", 0, 9, "Cats purr loudly."), 0.9),
    Hit(Passage("b", 3, 9, "Dogs bark."), 0.5),
]


@pytest.mark.parametrize(
    ("written", "answer", "sources", "marked"),
    [
        ("They bark [2].", "They bark.", ["b"], True),
        ("Both [2][1] of them", "Both of them", ["b", "a"], True),
        ("purr loudly", "purr loudly", ["a"], False),  # no mark: whose words they are
        ("Trains [7]", "Trains", [], False),  # there is no seventh, and no passage says it
        (NOTHING, NOTHING, [], False),
        ("", "", [], False),
    ],
)
def test_citations_are_the_marked_passages_or_the_one_that_says_it(
    written, answer, sources, marked
):
    text, citations = cite(written, HITS)
    assert text == answer and [one["source"] for one in citations] == sources
    assert all(one["marked"] == marked for one in citations)
