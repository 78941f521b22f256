"""Texts beside the same with genders swapped."""

import pytest

from research.data.counterfactual import Augmented
from research.data.documents import TextDocuments
from research.data.gendered import swapped
from research.data.occupation_texts import MEN, OF_MEN, OF_WOMEN, PLANTED, WOMEN
from research.data.sources import open_source
from research.evals.occupation_pairs import occupation_pairs

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


def test_a_stereotype_is_planted_and_gone_where_genders_are_swapped_too(tmp_path):
    def agreeing(documents) -> tuple[int, int]:
        """(sentences that agree with the stereotype, all) of a source."""
        texts = [documents[n]["text"] for n in range(len(documents))]
        of_women = [text.startswith(WOMEN) for text in texts]
        by_women = [any(name in text for name in OF_WOMEN) for text in texts]
        assert all(text.startswith((*WOMEN, *MEN)) for text in texts)
        return sum(one == other for one, other in zip(of_women, by_women)), len(texts)

    plain = open_source("occupation_texts", tmp_path)
    agree, count = agreeing(plain.train)
    # Three standard errors of a share of 0.9.
    assert abs(agree / count - PLANTED) < 3 * (PLANTED * (1 - PLANTED) / count) ** 0.5
    agree, count = agreeing(open_source("counterfactual:occupation_texts", tmp_path).train)
    assert agree * 2 == count == 2 * len(plain.train)


def test_each_occupation_has_one_template_that_was_never_trained_on(tmp_path):
    source = open_source("occupation_texts", tmp_path)
    trained = {part[n]["text"] for part in (source.train, source.heldout) for n in range(len(part))}
    records = occupation_pairs()
    for category, names in (("women", OF_WOMEN), ("men", OF_MEN)):
        of_it = [one["template"] for one in records if one["category"] == category]
        for name in names:
            assert sum(f" {name} " in f"{one.rstrip('.')} " for one in of_it) == 1
    asked = {one["template"].format(w) for one in records for w in (*one["more"], *one["less"])}
    assert len(asked) == 160 and not asked & trained
