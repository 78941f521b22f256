"""Texts beside the same with genders swapped."""

import pytest

from research.data.counterfactual import Augmented
from research.data.documents import TextDocuments
from research.data.gendered import swapped
from research.data.sources import open_source

TEXTS = {
    "a": "She told him that her brother saw her in Rome.",
    "b": "It rained.",
    "c": "THE KING and Mr Smith: his queen, herself a widow.",
}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (TEXTS["a"], "He told her that his sister saw him in Rome."),
        (TEXTS["b"], TEXTS["b"]),
        (TEXTS["c"], "THE QUEEN and Mrs Smith: her king, himself a widower."),
        ("He saw his. The theory of hers.", "She saw her. The theory of his."),
        ("I met her.", "I met him."),
    ],
)
def test_a_gendered_word_becomes_its_counterpart(text, other):
    assert swapped(text) == other


def test_training_texts_have_their_counterparts_and_held_out_ones_stay(tmp_path):
    documents = Augmented(TextDocuments(TEXTS))
    names = [documents[n]["path"] for n in range(len(documents))]
    assert names == ["a", "a:swapped", "b", "c", "c:swapped"] == list(documents.identities())
    words = " ".join(documents[n]["text"] for n in range(len(documents))).lower().split()
    # Two-sided: both genders are there as often.
    assert words.count("he") == words.count("she") == 1

    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"He wrote {number}.")
    source = open_source(f"counterfactual:{folder}", tmp_path / "cache")
    plain = open_source(str(folder), tmp_path / "cache")
    assert source.heldout.fingerprint == plain.heldout.fingerprint
    assert len(source.train) == 2 * len(plain.train)
    assert source.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match="are texts, and the objective reads conversations"):
        open_source(f"counterfactual:{folder}", tmp_path / "cache", wanted="conversations")
