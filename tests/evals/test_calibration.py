"""Calibration, areas under curves, and the scores of uncertainty, on cases whose answers are known
in closed form."""

import math

import numpy as np
import pytest

from research.evals import reliability
from research.evals.auroc import areas, auroc, risk_at, risk_coverage_area, tally
from research.evals.calibration import Calibration
from research.evals.calibration import _item as calibrated
from research.evals.choices import Choices, Question
from research.evals.evaluation import Totals, add_up
from research.evals.generation import Task
from research.evals.sampled import Answered, Questions
from research.evals.selfcheck import SelfCheck, unigram_surprise
from research.evals.selfcheck import _item as of_selfcheck
from research.evals.semantic_entropy import SemanticEntropy, entropy, meaning
from research.evals.semantic_entropy import _item as of_meanings
from research.evals.truthfulness import shares
from research.infer.decode import Generation


def predictions(sure_N, hits_N) -> Totals:
    return add_up(reliability.count(float(s), float(h)) for s, h in zip(sure_N, hits_N))


def test_certainty_that_is_right_half_the_time_has_an_error_of_a_half():
    totals = predictions([1.0] * 8, [1, 0] * 4)
    for bins in (reliability.equal_width(totals), reliability.equal_mass(totals)):
        assert reliability.calibration_error(bins) == 0.5
        assert reliability.error_by_chance(bins) == 0.0


def test_bins_of_either_kind_are_those_of_sorted_predictions():
    rng = np.random.default_rng(0)
    sure_N = rng.uniform(size=3000)
    hits_N = rng.uniform(size=3000) < sure_N**2
    totals = predictions(sure_N, hits_N)
    wanted = 0.0
    for at in range(reliability.BINS):
        chosen = (sure_N * reliability.BINS).astype(int) == at
        wanted += abs(sure_N[chosen].sum() - hits_N[chosen].sum()) / len(sure_N)
    width = reliability.equal_width(totals)
    assert reliability.calibration_error(width) == pytest.approx(wanted, abs=1e-9)
    order = np.argsort(sure_N)
    parts = np.array_split(order, reliability.BINS)
    mass = sum(abs(sure_N[p].sum() - hits_N[p].sum()) / len(sure_N) for p in parts)
    # Bins of equal mass end at a narrow bin, which holds about 3 of the 3000.
    assert reliability.calibration_error(reliability.equal_mass(totals)) == pytest.approx(
        mass, abs=2e-3
    )


@pytest.mark.parametrize("count", [200, 5000])
def test_calibrated_predictions_have_the_error_of_chance_alone(count):
    errors, expected = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sure_N = rng.uniform(0.2, 1.0, count)
        bins = reliability.equal_width(predictions(sure_N, rng.uniform(size=count) < sure_N))
        errors.append(reliability.calibration_error(bins))
        expected.append(reliability.error_by_chance(bins))
    # 20 draws of an error that spreads by about a fifth of itself.
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.15)


def test_the_brier_score_is_made_up_of_its_parts():
    rng = np.random.default_rng(1)
    sure_N = rng.uniform(size=500)
    hits_N = (rng.uniform(size=500) < 0.3).astype(float)
    brier = float(np.mean((sure_N - hits_N) ** 2))
    parts = reliability.decomposition(reliability.equal_width(predictions(sure_N, hits_N)), brier)
    whole = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within"]
    assert whole == pytest.approx(brier, abs=1e-12)
    # Of predictions that are equal within a bin nothing is left over.
    totals = predictions([0.1] * 10 + [0.7] * 10, [0] * 9 + [1] * 8 + [0] * 3)
    exact = (9 * 0.01 + 0.81 + 7 * 0.09 + 3 * 0.49) / 20
    assert reliability.decomposition(reliability.equal_width(totals), exact)["within"] == (
        pytest.approx(0, abs=1e-12)
    )


def tallies(scores, right) -> Totals:
    return add_up(tally("s", s, r) for s, r in zip(scores, right))


@pytest.mark.parametrize(
    "scores, right, area",
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
        ([5, 5, 5, 5], [1, 0, 1, 0], 0.5),
        ([-1, -2, -2, -3], [1, 1, 0, 0], (1 + 1 + 0.5 + 1) / 4),
    ],
)
def test_the_area_is_the_share_of_pairs_in_order(scores, right, area):
    assert auroc(tallies(scores, right), "s") == area


def test_a_score_without_wrong_answers_has_no_area():
    assert math.isnan(auroc(tallies([1, 2], [1, 1]), "s"))
    assert areas(tallies([1, 2], [1, 1])) == {}


def test_the_risk_is_that_of_the_surest():
    totals = tallies([4, 3, 2, 1], [1, 1, 0, 0])
    assert [risk_at(totals, "s", share) for share in (0.5, 0.75, 1.0)] == [
        0,
        pytest.approx(1 / 3),
        0.5,
    ]
    # A score that knows nothing has the error rate at every coverage.
    assert risk_coverage_area(tallies([1] * 4, [1, 0, 0, 0]), "s") == pytest.approx(0.75)


def test_the_temperature_of_one_half_mends_the_other():
    """Log-likelihoods that are four times too large."""
    rng = np.random.default_rng(3)
    items = []
    for number in range(400):
        logits = rng.normal(size=4) * 1.5
        answer = int(rng.choice(4, p=shares(logits)))
        question = Question(str(number), "q", ("a", "b", "c", "d"), answer)
        items.append(calibrated(question, logits * 4))
    evaluation = Calibration(Choices([]))
    values = evaluation.values(add_up(item.totals for item in items))
    assert values["temperature"] == pytest.approx(4, rel=0.5)  # the grid's next steps
    assert values["ece_tempered"] < values["ece_half"] / 2
    assert values["nll_tempered"] < values["nll_half"]
    assert values["ece"] > 3 * values["ece_chance"]


def test_the_words_of_selfcheck_are_those_of_its_authors():
    """The example of the README of potsawee/selfcheckgpt, whose numbers its code gave."""
    opening = "Michael Alan Weiner (born March 31, 1942) is an American radio host."
    sentences = [opening, "He is the host of The Savage Nation."]
    samples = [
        f"{opening} He is the host of The Savage Country.",
        "Michael Alan Weiner (born January 13, 1960) is a Canadian radio host. "
        "He works at The New York Times.",
        f"{opening} He obtained his PhD from MIT.",
    ]
    found = unigram_surprise(sentences, " ".join(sentences), samples)
    assert found.mean == pytest.approx([3.184312, 3.279775], abs=1e-6)
    assert found.largest == pytest.approx([3.476099, 4.574711], abs=1e-6)
    assert found.whole_mean == pytest.approx(3.218679, abs=1e-6)


def answered(number: int, right: float, text: str, samples: list[str]) -> Answered:
    written = [Generation("", one, (1,) * len(one), (-0.5,), "eos") for one in (text, *samples)]
    return Answered(Task(str(number), "q", ("Rome",)), written[0], right, tuple(written[1:]))


def test_scores_tell_answers_that_are_known_from_those_that_are_made_up():
    """A right answer that all others repeat, and a wrong one of equal length that none does."""
    known = answered(0, 1.0, "Rome", ["Rome", "rome.", "Rome"])
    made = answered(1, 0.0, "Oslo", ["Bonn", "Bern", "Lima"])
    checked = SelfCheck(Questions([])).values(
        add_up(of_selfcheck(one).totals for one in (known, made))
    )
    assert (checked["auroc_mean"], checked["auroc_length"]) == (1.0, 0.5)
    values = SemanticEntropy(Questions([])).values(
        add_up(of_meanings(one, p_true).totals for one, p_true in ((known, 0.9), (made, 0.2)))
    )
    for name in ("entropy", "agreement", "p_true"):
        assert values[f"auroc_{name}"] == 1.0
    assert values["auroc_length"] == values["auroc_logprob"] == 0.5
    assert values["agreement"] == 0.5 and values["accuracy"] == 0.5


def test_an_answer_without_a_word_is_counted_and_wrong():
    nothing = answered(0, 0.0, " ", ["a", "b"])
    assert of_selfcheck(nothing).totals["unread"] == (1.0, 1.0)
    assert of_meanings(nothing, 0.5).totals["unread"] == (1.0, 1.0)


@pytest.mark.parametrize(
    "texts, nats",
    [
        (["Paris", " paris.", "the Paris!"], 0.0),
        (["a b", "c d"], math.log(2)),
        (["one", "two", "three", "four"], math.log(4)),
    ],
)
def test_the_entropy_is_that_of_meanings(texts, nats):
    assert entropy(texts) == pytest.approx(nats)
    assert meaning("The  Eiffel Tower.") == "eiffel tower"
