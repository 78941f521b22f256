"""Each objective's examples keep the text, ask for what they should and nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.objectives.causal_lm import CausalLM
from research.objectives.masked_lm import MaskedLM
from research.objectives.span_corruption import SpanCorruption
from research.objectives.translation import Translation

EOS, START, MASK, VOCAB = 1, 0, 2, 200
SENTINELS = tuple(range(3, 35))


@st.composite
def windows(draw, length: int = 48):
    """A packed window: documents of random lengths, then padding."""
    lengths, left = [], length
    while left > 0 and len(lengths) < 5 and (not lengths or draw(st.booleans())):
        lengths.append(draw(st.integers(1, left)))
        left -= lengths[-1]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    window = np.zeros((3, length), np.int32)
    at = 0
    for segment, size in enumerate(lengths, 1):
        window[:, at : at + size] = (
            rng.integers(40, VOCAB, size),
            np.full(size, segment),
            np.arange(size),
        )
        at += size
    return {"tokens": window[0], "segments": window[1], "positions": window[2]}, rng


@given(windows())
def test_causal_lm_predicts_every_token_of_a_document_but_its_first(drawn):
    window, rng = drawn
    example = CausalLM().example(window, rng)
    counted = example["weights"] == 1
    np.testing.assert_array_equal(example["targets"][:-1], example["inputs"][1:])
    np.testing.assert_array_equal(
        counted, (window["positions"][1:] > 0) & (window["segments"][1:] > 0)
    )


@given(windows(), st.booleans())
def test_masked_lm_changes_only_what_it_asks_for(drawn, whole_words):
    window, rng = drawn
    starts = np.zeros(VOCAB, bool)
    starts[::3] = True
    words = tuple(map(bool, starts)) if whole_words else None
    objective = MaskedLM(MASK, VOCAB, special_ids=(41, 42), word_starts=words)
    example = objective.example(window, rng)
    chosen = example["weights"] == 1
    bound = objective.bound(len(chosen))
    assert chosen.sum() <= bound.tokens or not bound.hard
    np.testing.assert_array_equal(example["inputs"][~chosen], window["tokens"][~chosen])
    np.testing.assert_array_equal(example["targets"], window["tokens"])
    assert not np.any(chosen & (window["segments"] == 0)) and not np.any(
        chosen & np.isin(window["tokens"], (41, 42))
    )
    if whole_words:
        # A token that begins no word has the fate of the token before it, in the same document and
        # no special token.
        follows = (
            ~starts[window["tokens"]]
            & (window["positions"] > 0)
            & ~np.isin(window["tokens"], (41, 42))
        )
        inside = (
            follows[1:] & ~np.isin(window["tokens"][:-1], (41, 42)) & (window["segments"][1:] > 0)
        )
        np.testing.assert_array_equal(chosen[1:][inside], chosen[:-1][inside])


def test_masked_lm_has_the_shares_of_the_paper():
    window = {
        "tokens": np.full(50_000, 99, np.int32),
        "segments": np.ones(50_000, np.int32),
        "positions": np.arange(50_000),
    }
    example = MaskedLM(MASK, VOCAB).example(window, np.random.default_rng(0))
    chosen = example["weights"] == 1
    kinds = Counter(
        np.where(
            example["inputs"] == MASK, "mask", np.where(example["inputs"] == 99, "same", "random")
        )[chosen]
    )
    assert chosen.mean() == pytest.approx(0.15, abs=1e-4)  # exact but for rounding
    # Three standard deviations of 7,500 draws are 0.014.
    for kind, share in (("mask", 0.8), ("same", 0.1), ("random", 0.1)):
        assert kinds[kind] / chosen.sum() == pytest.approx(share, abs=0.014)


@given(windows())
@settings(max_examples=200)
def test_span_corruption_can_be_undone(drawn):
    window, rng = drawn
    objective = SpanCorruption(START, EOS, SENTINELS)
    example = objective.example(window, rng)
    for segment in range(1, window["segments"].max(initial=0) + 1):
        source = list(example["encoder_inputs"][example["encoder_segments"] == segment])
        target = list(example["targets"][example["segments"] == segment])
        assert target[-1] == EOS
        spans, sentinel = {}, None
        for token in target[:-1]:
            if token in SENTINELS:
                sentinel = token
                spans[sentinel] = []
            else:
                spans[sentinel].append(token)
        restored = [
            t for token in source for t in (spans[token] if token in SENTINELS else [token])
        ]
        np.testing.assert_array_equal(restored, window["tokens"][window["segments"] == segment])
        inputs = example["inputs"][example["segments"] == segment]
        np.testing.assert_array_equal(inputs, [START, *target[:-1]])


def test_span_corruption_has_the_shares_of_the_paper():
    tokens = np.full(512, 99, np.int32)
    window = {
        "tokens": tokens,
        "segments": np.ones(512, np.int32),
        "positions": np.arange(512, dtype=np.int32),
    }
    objective = SpanCorruption(START, EOS, SENTINELS)
    example = objective.example(window, np.random.default_rng(0))
    noise = np.isin(example["targets"], (99,)) & (example["weights"] == 1)
    spans = np.isin(example["targets"], SENTINELS).sum()
    assert noise.sum() == round(0.15 * 512) and spans == round(noise.sum() / 3)
    assert (
        objective.target_length(512) == 120 and example["weights"].sum() == noise.sum() + spans + 1
    )


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3))
def test_translation_shifts_each_target_within_its_own_pair(sizes):
    window = {}
    for side, which in (("inputs", 0), ("targets", 1)):
        rows = np.zeros((2, 32), np.int32)
        flat = np.concatenate([np.full(size[which], i + 1) for i, size in enumerate(sizes)])
        rows[0, : len(flat)], rows[1, : len(flat)] = 50 + np.arange(len(flat)), flat
        window |= {side: rows[0], f"{side}_segments": rows[1]}
    example = Translation(START).example(window, np.random.default_rng(0))
    np.testing.assert_array_equal(example["targets"], window["targets"])
    np.testing.assert_array_equal(example["encoder_inputs"], window["inputs"])
    first = (example["positions"] == 0) & (example["segments"] > 0)
    assert np.all(example["inputs"][first] == START) and first.sum() == len(sizes)
    later = example["positions"] > 0
    np.testing.assert_array_equal(
        example["inputs"][later], example["targets"][np.flatnonzero(later) - 1]
    )
