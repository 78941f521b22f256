"""Designs combine as their names say, and what a config lacks is refused by name."""

import pytest

from research.experiment import base_config, tune
from research.sweep import Sweep, chain, choice, factor, product, seeds, zipped

RATE = factor("rate", "optimizer.learning_rate", [1e-3, 1e-2])
NAME = factor("optimizer", "optimizer.name", ["adamw", "lion", "muon"])


@pytest.mark.parametrize(
    ("design", "points"),
    [
        (product(RATE, NAME), 6),
        (chain(RATE, NAME), 4),  # the baseline is a point of both
        (zipped(RATE, factor("seed", "train.seed", [3, 4])), 2),
        (product(RATE, chain(NAME, factor("steps", "train.steps", [5, 6]))), 8),
    ],
    ids=["product", "chain", "zip", "nested"],
)
def test_the_points_of_a_design(design, points):
    sweep = Sweep(design, seeds(2))
    assert len(sweep.points) == points
    assert sweep.points[0] == sweep.baseline_levels
    assert all(point.keys() == design.factors.keys() for point in sweep.points)


def test_a_point_changes_the_config_and_nothing_else():
    joint = zipped(RATE, factor("clip", "optimizer.clip_norm", [None, 2]))
    method = choice("method", {"lora": {}, "ia3": lambda c: tune(c, "ia3")})
    sweep = Sweep(product(joint, method))
    config = base_config()
    before = config.to_dict()
    sweep.change(config, {"rate, clip": "0.01, 2"})
    assert config.optimizer.learning_rate == 0.01 and config.optimizer.clip_norm == 2
    sweep.change(config, {"method": "ia3"})
    assert config.tune.method == "ia3"
    changed = {n for n, section in config.to_dict().items() if section != before[n]}
    assert changed == {"optimizer", "tune"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sweep(RATE).change(base_config(), {"rate": "0.001"}), ""),
        (lambda: _change("lora.rnk", 4), "config.lora has no field 'rnk'; the nearest is 'rank'"),
        (lambda: _change("lor.rank", 4), "config has no field 'lor'; the nearest is 'lora'"),
        (lambda: _change("lora.rank", "four"), "config.lora.rank='four'"),
        (lambda: product(RATE, RATE), "'rate' is in two"),
        (lambda: zipped(RATE, NAME), r"\[2, 3\] points"),
        (lambda: factor("rate", "x", [1, 1]), "twice"),
        (lambda: choice("rate", {}), "no levels"),
        (lambda: Sweep(RATE, baseline={"rat": 1}), "the nearest is 'rate'"),
        (lambda: Sweep(RATE, baseline={"rate": 0.1}), "nearest is '0.01'"),
        (lambda: Sweep(RATE, metrics={"eval/loss": "less"}), "'lower' or 'higher'"),
        (lambda: Sweep(RATE, seeds=[1, 1]), "each once"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, words):
    if not words:
        make()
        return
    with pytest.raises(ValueError, match=words):
        make()


def _change(path, value):
    Sweep(factor("rank", path, [value])).change(base_config(), {"rank": str(value)})
