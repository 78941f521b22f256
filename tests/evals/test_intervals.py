import pytest

from research.evals.intervals import wilson


# statsmodels.stats.proportion.proportion_confint(..., method="wilson"), 0.14.
@pytest.mark.parametrize(
    "right, count, low, high",
    [(0, 10, 0.0, 0.277533), (7, 10, 0.396779, 0.892209), (60, 60, 0.939827, 1.0)],
)
def test_the_interval_of_wilson(right, count, low, high):
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-5)
