"""The fit of the scaling law finds constants that are known, and says how well."""

import numpy as np
import pytest
from scipy import optimize

from research.sweep import scaling_law
from research.sweep.scaling import Run, predicted, sentences
from research.sweep.scaling_law import NAMES, fit

# Hoffmann et al. as fitted again by Besiroglu et al. (arXiv:2404.10102, table 1).
REFIT = dict(zip(NAMES, (1.8172, 482.01, 2085.43, 0.3478, 0.3658)))


def points(seed: int, noise: float, sizes=9, lengths=7):
    """Runs of 70M to 16B parameters on 2 to 200 tokens a parameter."""
    n = np.repeat(np.geomspace(7e7, 1.6e10, sizes), lengths)
    d = n * np.tile(np.geomspace(2, 200, lengths), sizes)
    e, a, b, alpha, beta = REFIT.values()
    clean = e + a / n**alpha + b / d**beta
    return n, d, clean * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))


def test_without_noise_the_constants_come_back():
    law = fit(*points(0, 0.0), resamples=20)
    # The Huber loss is quadratic there, and the fit ends at a relative 1e-8 of its cost.
    assert np.allclose(list(law.constants.values()), list(REFIT.values()), rtol=1e-3)
    assert np.isclose(law.loss(1e9, 2e10), 1.8172 + 482.01 / 1e9**0.3478 + 2085.43 / 2e10**0.3658)


def test_no_optimizer_of_scipy_finds_a_lower_minimum():
    n, d, l = (np.log(one) for one in points(1, 0.01))
    law = fit(*points(1, 0.01), resamples=20)
    best = scaling_law._theta(law.constants)

    def cost(theta):
        error, slopes = scaling_law._errors(theta[None], n, d, l)
        gradient = np.clip(error[0], -scaling_law.DELTA, scaling_law.DELTA) @ slopes[0]
        return scaling_law._cost(error, np.ones((1, len(l))))[0], gradient

    assert optimize.check_grad(lambda t: cost(t)[0], lambda t: cost(t)[1], best + 0.1) < 1e-5
    rng, lowest = np.random.default_rng(0), np.inf
    for _ in range(8):
        start = best + rng.normal(0, [0.3, 1, 1, 0.05, 0.05])
        lowest = min(lowest, optimize.minimize(cost, start, jac=True, method="BFGS").fun)
    assert cost(best)[0] <= lowest * (1 + 1e-4)


@pytest.mark.slow
def test_intervals_hold_the_constants_of_noisy_runs():
    """Of 100 draws 94 have all five inside; a fifth of them is drawn here."""
    inside = 0
    for seed in range(20):
        law = fit(*points(seed, 0.01), resamples=200)
        ends = law.intervals
        inside += all(ends[n][0] <= value <= ends[n][1] for n, value in REFIT.items())
    assert inside >= 17


def test_the_largest_size_is_left_out_and_predicted():
    runs = [Run(*map(float, one)) for one in zip(*points(3, 0.002))]
    values = predicted(runs)
    largest = max(run.parameters for run in runs)
    assert [one["parameters"] for one in values["heldout"]] == [largest] * 7
    assert all(abs(one["error"]) < 0.015 for one in values["heldout"])
    # What was measured there is in no constant.
    moved = [
        Run(r.parameters, r.tokens, 2 * r.loss if r.parameters == largest else r.loss) for r in runs
    ]
    assert predicted(moved)["constants"] == values["constants"]
    assert "left out of the fit" in sentences(values)[1]


@pytest.mark.parametrize(("sizes", "lengths"), [(1, 9), (2, 9), (9, 1), (2, 2)])
def test_too_few_runs_are_refused(sizes, lengths):
    n = np.repeat(np.geomspace(1e6, 1e9, sizes), lengths)
    d = np.tile(np.geomspace(1e6, 1e9, lengths), sizes)
    with pytest.raises(ValueError, match="at least six runs"):
        fit(n, d, 2 + 1 / n**0.3 + 1 / d**0.3)
