"""Metrics of texts: values by hand, and those of the packages whose numbers people publish."""

import pytest

from research.evals.evaluation import add_up
from research.evals.text_metrics import check_metrics, corpus_values, score


@pytest.mark.parametrize(
    ("metric", "written", "references", "wanted"),
    [
        ("exact_match", "The Eiffel Tower!", ["Eiffel tower"], 1.0),
        ("exact_match", "Eiffel", ["Eiffel tower", "eiffel"], 1.0),
        ("exact_match", "Paris", ["Eiffel tower"], 0.0),
        # Words "cat sat" and "cat sat down": 2 * 2 / 5.
        ("f1", "the cat sat", ["a cat sat down", "dogs"], 0.8),
        ("f1", "cat cat", ["cat"], 2 / 3),
        ("f1", "", [""], 1.0),
        ("f1", "a", ["cat"], 0.0),
        ("contains", "It was in Paris, I think", ["paris"], 1.0),
        ("contains", "It was in Parish", ["Paris"], 0.0),
        ("numeric", "so 1,000 + 234 = 1,234.", ["#### 1234"], 1.0),
        ("numeric", "no idea", ["3"], 0.0),
    ],
)
def test_values_by_hand(metric, written, references, wanted):
    assert score([metric], written, references) == {metric: (pytest.approx(wanted), 1.0)}


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metrics has 'rogue'; the nearest is 'rouge'"):
        check_metrics(("f1", "rogue"))
    with pytest.raises(ValueError, match="metrics is empty"):
        check_metrics(())


WRITTEN = ["the cat is on the mat", "there is a dog in the house", ""]
REFERENCES = [["the cat sat on the mat"], ["there was a dog in that house"], ["nothing"]]


def test_bleu_and_chrf_of_a_corpus_are_those_of_sacrebleu():
    metrics = pytest.importorskip("sacrebleu", reason="sacrebleu: pip install '.[eval]'").metrics
    names = ("bleu", "chrf")
    parts = [score(names, *pair) for pair in zip(WRITTEN, REFERENCES)]
    values = corpus_values(names, add_up(parts))
    streams = [[refs[0] for refs in REFERENCES]]
    assert values["bleu"] == metrics.BLEU().corpus_score(WRITTEN, streams).score
    assert values["chrf"] == metrics.CHRF().corpus_score(WRITTEN, streams).score
    alone = metrics.CHRF().sentence_score(WRITTEN[0], REFERENCES[0]).score
    assert parts[0]["chrf"] == (pytest.approx(alone), 1.0)


def test_rouge_is_that_of_rouge_score():
    pytest.importorskip("rouge_score", reason="rouge-score: pip install '.[eval]'")
    got = score(("rouge",), "the cat is on the mat", ["the cat sat on the mat", "a dog"])
    # 5 of 6 words, 3 of 5 pairs; the longest common sequence has 5 words.
    wanted = {"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6, "rougeLsum": 5 / 6}
    assert {name: total for name, (total, _) in got.items()} == pytest.approx(wanted)
