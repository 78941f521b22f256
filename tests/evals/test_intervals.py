"""Intervals: published values, and how often they hold what they should."""

import numpy as np
import pytest

from research.evals.intervals import bootstrap, newcombe, student, wilson


# statsmodels.stats.proportion.proportion_confint(..., method="wilson"), 0.14.
@pytest.mark.parametrize(
    "right, count, low, high",
    [(0, 10, 0.0, 0.277533), (7, 10, 0.396779, 0.892209), (60, 60, 0.939827, 1.0)],
)
def test_the_interval_of_wilson(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-5)


# Newcombe 1998, table II, method 10: hits of both, of the first alone, of the second, of none.
@pytest.mark.parametrize(
    "both, first, second, neither, low, high",
    [
        (36, 12, 2, 0, 0.0569, 0.3404),
        (36, 14, 0, 0, 0.1528, 0.4167),
        (0, 0, 0, 50, -0.0714, 0.0714),
        # Of no table: a correlation of 0.6421 after the correction for continuity.
        (20, 5, 3, 22, -0.0741, 0.1517),
    ],
)
def test_the_interval_of_newcombe(both, first, second, neither, low, high):
    one = [1] * both + [1] * first + [0] * second + [0] * neither
    other = [1] * both + [0] * first + [1] * second + [0] * neither
    assert newcombe(one, other) == pytest.approx((low, high), abs=1e-4)
    assert newcombe(other, one) == pytest.approx((-high, -low), abs=1e-4)


def test_the_interval_of_student():
    # t of 9 degrees of freedom at 97.5% is 2.262157; the error of 0..9 is sqrt(55/6/10).
    low, high = student(range(10))
    assert (low + high) / 2 == pytest.approx(4.5)
    assert (high - low) / 2 == pytest.approx(2.262157 * (55 / 60) ** 0.5, rel=1e-6)
    with pytest.raises(ValueError, match="1 values have no interval"):
        student([1.0])


def test_intervals_hold_the_truth_about_95_times_of_100():
    random, held = np.random.default_rng(0), dict.fromkeys(("student", "wilson", "newcombe"), 0)
    for _ in range(1000):
        low, high = student(random.normal(size=12))
        held["student"] += low <= 0 <= high
        hits = random.random(60) < 0.3
        low, high = wilson(hits.sum(), 60)
        held["wilson"] += low <= 0.3 <= high
        others = np.where(random.random(60) < 0.5, hits, random.random(60) < 0.3)
        low, high = newcombe(hits, others)
        held["newcombe"] += low <= 0 <= high
    # 1,000 trials of 95% leave 931 to 968 at three standard errors; shares of 60 are discrete.
    assert all(925 <= count <= 975 for count in held.values()), held


def test_a_bootstrap_of_a_mean_is_about_the_interval_of_student():
    values = np.random.default_rng(1).normal(size=200)
    mean = lambda weights: np.array([weights @ values / weights.sum(), np.nan])
    lows, highs = bootstrap(200, mean)
    # The ends of 1,000 draws are known to some hundredths of a standard error of 0.07.
    assert (lows[0], highs[0]) == pytest.approx(student(values), abs=0.02)
    assert np.isnan([lows[1], highs[1]]).all()
    assert (lows[0], highs[0]) == tuple(x[0] for x in bootstrap(200, mean))
