"""The held-out loss is the likelihood of the data, whatever else a run trains on."""

import math
from types import SimpleNamespace

import pytest

from research.evals.heldout import HeldOut


def values(totals, bits_per_byte=False):
    objective = SimpleNamespace(reports=("accuracy",), bits_per_byte=bits_per_byte)
    corpus = SimpleNamespace(heldout_size=lambda: (20, 4), provenance={"gzip_bits_per_byte": 2.0})
    return HeldOut(objective, (), 1, corpus).values(totals)


@pytest.mark.parametrize(
    ("totals", "wanted"),
    [
        # label smoothing or z-loss: the loss is larger than the likelihood's
        ({"loss": (10.0, 4.0), "nll": (8.0, 4.0)}, {"loss": 2.0, "objective": 2.5}),
        ({"loss": (8.0, 4.0), "nll": (8.0, 4.0)}, {"loss": 2.0}),
        # a classifier; what it reports is not touched
        (
            {"loss": (3.0, 2.0), "nll": (2.0, 2.0), "accuracy": (1.0, 2.0)},
            {"loss": 1.0, "objective": 1.5, "accuracy": 0.5},
        ),
        # balance of experts, which is no part of the likelihood and not reported
        (
            {"loss": (8.5, 4.0), "nll": (8.0, 4.0), "balance": (4.0, 4.0)},
            {"loss": 2.0, "objective": 2.125},
        ),
        ({"loss": (1.0, 2.0)}, {"loss": 0.5}),  # preferences have no likelihood
    ],
)
def test_the_loss_is_nats_per_target_and_the_objective_is_beside_it(totals, wanted):
    assert values(totals) == wanted


def test_bits_per_byte_are_those_of_the_loss():
    got = values({"loss": (10.0, 4.0), "nll": (8.0, 4.0)}, bits_per_byte=True)
    assert got["bits_per_byte"] == pytest.approx(got["loss"] / math.log(2) * 4 / 20)
