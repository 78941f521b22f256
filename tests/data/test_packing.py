"""Packing: every token once, segments and positions that keep documents apart, windows that stand
alone."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from research.data.packing import Chained, PackedWindows
from research.data.pairs import PackedPairs
from research.data.separate import SeparateWindows
from research.data.tokens import TokenStore

BOS, EOS = 60_001, 60_002  # not among the ids drawn


def the_store(documents):
    offsets = np.cumsum([0, *map(len, documents)])
    ids = np.array([token for document in documents for token in document], np.uint16)
    return TokenStore(ids, offsets, np.array([len(d) for d in documents]), "test")


def numbered(lengths):
    """Documents in which every token of the corpus is another number, so that a token tells where
    it came from."""
    numbers = iter(range(sum(lengths)))
    return [[next(numbers) for _ in range(length)] for length in lengths]


the_lengths = st.lists(st.integers(0, 25), min_size=1, max_size=12).filter(any)

cases = given(
    lengths=the_lengths,
    length=st.integers(2, 17),
    seed=st.none() | st.integers(0, 5),
    bos=st.sampled_from([None, BOS]),
    eos=st.sampled_from([None, EOS]),
    overlap=st.sampled_from([0, 1]),
)


def expected_stream(documents, seed, bos, eos):
    """The stream written plainly: (token, document, place in it)."""
    order = (
        range(len(documents))
        if seed is None
        else np.random.default_rng(seed).permutation(len(documents))
    )
    stream = []
    for d in order:
        whole = ([bos] if bos else []) + documents[d] + ([eos] if eos else [])
        stream += [(token, d, place) for place, token in enumerate(whole)]
    return stream


@settings(deadline=None, max_examples=300)
@cases
def test_windows_are_the_stream_cut_with_this_overlap(lengths, length, seed, bos, eos, overlap):
    documents = numbered(lengths)
    stream = expected_stream(documents, seed, bos, eos)
    windows = PackedWindows(
        the_store(documents), length, seed=seed, bos_id=bos, eos_id=eos, overlap=overlap
    )
    assert windows.n_tokens == len(stream)
    rebuilt = []
    for i in range(len(windows)):
        window = windows[i]
        real = window["segments"] > 0
        assert real[: real.sum()].all() and (
            real.all() or i == len(windows) - 1
        )  # padding only at the very end
        assert not window["tokens"][~real].any() and not window["positions"][~real].any()
        rebuilt += window["tokens"][real].tolist()[overlap if i else 0 :]
    assert rebuilt == [token for token, _, _ in stream]


@settings(deadline=None, max_examples=300)
@cases
def test_segments_and_positions_follow_the_documents(lengths, length, seed, bos, eos, overlap):
    documents = numbered(lengths)
    stream = expected_stream(documents, seed, bos, eos)
    windows = PackedWindows(
        the_store(documents), length, seed=seed, bos_id=bos, eos_id=eos, overlap=overlap
    )
    for i in range(len(windows)):
        window = windows[i]
        here = stream[i * (length - overlap) :][:length]
        segment, position, last = 0, 0, None
        for j, (_, document, _) in enumerate(here):
            segment, position = (segment, position + 1) if document == last else (segment + 1, 0)
            assert (window["segments"][j], window["positions"][j]) == (segment, position)
            last = document


@settings(deadline=None, max_examples=200)
@given(lengths=the_lengths, length=st.integers(2, 17), seed=st.integers(0, 5))
def test_a_causal_model_is_asked_for_every_token_once_within_its_document(lengths, length, seed):
    documents = numbered(lengths)
    windows = PackedWindows(the_store(documents), length, seed=seed, bos_id=BOS, eos_id=EOS)
    asked = []
    for i in range(len(windows)):
        tokens, segments = windows[i]["tokens"], windows[i]["segments"]
        counted = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        asked += tokens[1:][counted].tolist()
    assert sorted(asked) == sorted(
        [token for d in documents for token in d] + [EOS] * len(documents)
    )


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 25), min_size=2, max_size=8), length=st.integers(3, 9))
def test_no_window_depends_on_another(lengths, length):
    documents = numbered(lengths)
    windows = PackedWindows(the_store(documents), length, seed=1, bos_id=BOS, eos_id=EOS)
    kept = [windows[i] for i in range(len(windows))]
    backwards = [
        {name: array.copy() for name, array in windows[i].items()}
        for i in reversed(range(len(windows)))
    ]
    for window, alone in zip(kept, reversed(backwards)):
        for name, array in window.items():  # nothing read later wrote into it
            np.testing.assert_array_equal(array, alone[name])
            assert array.dtype == np.int32 and array.shape == (length,)
    changed = [list(d) for d in documents]
    changed[0][0] = 59_999
    other = PackedWindows(the_store(changed), length, seed=1, bos_id=BOS, eos_id=EOS)
    differ = [i for i in range(len(windows)) if (other[i]["tokens"] != windows[i]["tokens"]).any()]
    assert all(documents[0][0] in windows[i]["tokens"] for i in differ) and 1 <= len(differ) <= 2


def test_indices_outside_are_refused():
    windows = PackedWindows(the_store([[1, 2, 3]]), 4, seed=None, bos_id=None, eos_id=EOS)
    assert len(windows) == 1 and windows[-1]["tokens"].tolist() == [1, 2, 3, EOS]
    with pytest.raises(IndexError):
        windows[1]
    with pytest.raises(ValueError, match="sequence_length"):
        PackedWindows(the_store([[1]]), 1, seed=None, bos_id=None, eos_id=None)
    with pytest.raises(ValueError, match="no tokens"):
        PackedWindows(the_store([[]]), 4, seed=None, bos_id=BOS, eos_id=EOS)


def test_chained_windows_are_all_of_them_in_turn():
    parts = [
        PackedWindows(the_store([[i] * n]), 4, seed=None, bos_id=None, eos_id=None)
        for i, n in ((1, 9), (2, 4))
    ]
    chain = Chained(parts)
    assert len(chain) == 4
    assert [chain[i]["tokens"][0] for i in range(4)] == [1, 1, 1, 2]


@settings(deadline=None, max_examples=200)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=12),
    lengths=st.tuples(st.integers(2, 15), st.integers(2, 15)),
    seed=st.none() | st.integers(0, 3),
)
def test_pairs_share_segments_and_each_is_in_one_window_once(pairs, lengths, seed):
    sides = [numbered([pair[side] for pair in pairs]) for side in (0, 1)]
    windows = PackedPairs(the_store(sides[0]), the_store(sides[1]), *lengths, seed=seed, eos_id=EOS)
    seen = []
    for i in range(len(windows)):
        window = windows[i]
        segments = {name: window[f"{name}_segments"] for name in ("inputs", "targets")}
        assert segments["inputs"].max() == segments["targets"].max() >= 1
        for segment in range(1, segments["inputs"].max() + 1):
            pair = []
            for name in ("inputs", "targets"):
                here = segments[name] == segment
                pair.append(window[name][here].tolist())
                assert window[f"{name}_positions"][here].tolist() == list(range(here.sum()))
            seen.append(tuple(map(tuple, pair)))
        for name in ("inputs", "targets"):
            assert not window[name][segments[name] == 0].any()
        if i:  # the pair that starts this window had no room in the last one
            filled = [(windows[i - 1][f"{name}_segments"] > 0).sum() for name in segments]
            wanted = [(segments[name] == 1).sum() for name in segments]
            assert any(used + more > length for used, more, length in zip(filled, wanted, lengths))
    expected = [
        tuple((*side[p][: n - 1], EOS) for side, n in zip(sides, lengths))
        for p in range(len(pairs))
    ]
    if seed is None:
        assert seen == expected
    assert sorted(seen) == sorted(expected)


@settings(deadline=None, max_examples=200)
@cases
def test_a_text_in_windows_of_its_own_is_cut_as_the_only_one(
    lengths, length, seed, bos, eos, overlap
):
    documents = numbered(lengths)
    store = the_store(documents)
    windows = SeparateWindows(
        store, length, seed=seed, bos_id=bos, eos_id=eos, overlap=overlap,
        bounds=(store.offsets[:-1], store.offsets[1:]),
    )  # fmt: skip
    order = range(len(documents))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(documents))
    expected = []
    for document in (documents[one] for one in order if documents[one]):
        alone = PackedWindows(
            the_store([document]), length, seed=None, bos_id=bos, eos_id=eos, overlap=overlap
        )
        expected += [alone[index] for index in range(len(alone))]
    assert len(windows) == len(expected)
    for index, window in enumerate(expected):
        got = windows[index]
        assert all(np.array_equal(got[name], window[name]) for name in window)
