"""Mixtures: weights that hold, parts that do not know of each other, spellings."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from research.data.mixture import (
    Mixture,
    mixture_provenance,
    open_mixture,
    parse_mixture,
)


class Numbers:
    """Windows that say which part they are of and which one they are."""

    def __init__(self, part, size):
        self.part, self.size = part, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"part": self.part, "index": index}


def draws(mixture, indices):
    return [(window["part"], window["index"]) for window in (mixture[i] for i in indices)]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4))
def test_weights_hold_over_any_number_of_draws(weights):
    mixture = Mixture([Numbers(k, 1) for k in range(len(weights))], weights, seed=0)
    located = [mixture.locate(i) for i in range(3000)]
    for n in (1, 10, 777, 3000):
        counts = np.bincount([part for part, _ in located[:n]], minlength=len(weights))
        # Each split of the stream rounds by less than one window; 1 % of 10,000 draws would be 100.
        assert np.abs(counts - n * np.array(weights) / sum(weights)).max() < len(weights)
    for part in range(len(weights)):  # a part gives its windows in turn, none skipped
        given_by = [index for p, index in located if p == part]
        assert given_by == list(range(len(given_by)))


def test_an_epoch_is_each_window_once_and_the_next_in_another_order():
    drawn = [index for _, index in draws(Mixture([Numbers(0, 97)], seed=3), range(3 * 97))]
    epochs = [drawn[e * 97 : (e + 1) * 97] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(97))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = [index for _, index in draws(Mixture([Numbers(0, 97)], seed=4), range(97))]
    assert other not in epochs  # in grain's own shuffle epoch 1 of seed 3 is epoch 0 of seed 4
    assert [index for _, index in draws(Mixture([Numbers(0, 1)], seed=0), range(3))] == [0, 0, 0]


def test_re_weighting_keeps_every_part_in_its_order():
    orders = []
    for weights in ((1.0, 1.0), (0.9, 0.3)):
        drawn = draws(Mixture([Numbers(0, 31), Numbers(1, 17)], weights, seed=5), range(200))
        orders.append([[index for part, index in drawn if part == k] for k in (0, 1)])
    for k in (0, 1):
        shorter = min(len(order[k]) for order in orders)
        assert orders[0][k][:shorter] == orders[1][k][:shorter]


def test_any_index_can_be_asked_for_alone():
    def mixture():
        return Mixture([Numbers(0, 31), Numbers(1, 17)], (0.7, 0.3), seed=5)

    in_turn = draws(mixture(), range(300))
    assert [draws(mixture(), [i])[0] for i in (299, 0, 150, 3)] == [
        in_turn[i] for i in (299, 0, 150, 3)
    ]
    assert draws(mixture(), [10**15])  # far beyond any run


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("stdlib:0.7,shakespeare:0.3", [("stdlib", 0.7), ("shakespeare", 0.3)]),
        ("stdlib", [("stdlib", 1.0)]),
        ("tfds:lm1b", [("tfds:lm1b", 1.0)]),
        (
            "tfds:wmt19/de-en:1.0.0?text=de:2, stdlib:1",
            [("tfds:wmt19/de-en:1.0.0?text=de", 2.0), ("stdlib", 1.0)],
        ),
    ],
)
def test_spellings(spelling, expected):
    assert parse_mixture(spelling) == expected


@pytest.mark.parametrize(
    "spelling", ["", "stdlib,", "stdlib:0,a:1", "stdlib:-1", "a:nan", "a:inf", "a:1,a:2", ":1"]
)
def test_spellings_that_mean_nothing_are_refused(spelling):
    with pytest.raises(ValueError, match="data ") as caught:
        parse_mixture(spelling)
    assert "\n" not in str(caught.value)


def test_a_path_with_commas_and_colons_is_one_source(tmp_path):
    folder = tmp_path / "a,b:1"
    folder.mkdir()
    (folder / "x.txt").write_text("some words\n" * 100)
    ((source, weight),) = open_mixture(str(folder), tmp_path / "cache")
    assert weight == 1.0 and source.name == str(folder)
    assert mixture_provenance([(source, 1.0)]) == source.provenance


def test_the_provenance_of_a_mixture_adds_up(tmp_path):
    for name, size in (("a", 300), ("b", 2000)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} says {i}\n" for i in range(size)))
    parts = open_mixture(f"{tmp_path / 'a.txt'}:3,{tmp_path / 'b.txt'}:1", tmp_path / "cache")
    facts = mixture_provenance(parts)
    sizes = [source.provenance["heldout_bytes"] for source, _ in parts]
    bits = [source.provenance["gzip_bits_per_byte"] for source, _ in parts]
    assert facts["heldout_bytes"] == sum(sizes)
    assert facts["gzip_bits_per_byte"] == pytest.approx(
        np.average(bits, weights=sizes), rel=1e-12
    )  # float order
    assert [one["weight"] for one in facts["sources"]] == [3.0, 1.0]


@pytest.mark.parametrize(
    ("parts", "weights"), [((), ()), ((3,), (1.0, 2.0)), ((3,), (0.0,)), ((0,), (1.0,))]
)
def test_mixtures_of_nothing_are_refused(parts, weights):
    with pytest.raises(ValueError, match="part"):
        Mixture([Numbers(0, size) for size in parts], weights, seed=0)
