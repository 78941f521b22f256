"""Images that see themselves whole, alone or with all of their prompt, in an engine: a step never
cuts such a block, and texts are those of the loop."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.infer.decode import Generation, generate
from research.infer.sampling import SamplingConfig
from research.models.config import ModelConfig
from research.models.model import Model
from research.serve.engine import Engine
from research.serve.request import Request
from research.serve.schedule import Budget, Running, State, Waiting, schedule
from research.serve.soft import Soft
from tests.serve.engines import Letters
from tests.serve.test_media import DECODER, GREEDY, IMAGE, SEEN, parameters, picture
from tests.serve.test_media import requests as asked_with

TOLERANCE = 1e-5  # sums of the same float32 products in another order
DRAWN = SamplingConfig(temperature=0.9, top_p=0.9, max_tokens=5, seed=3)
# A pool with room for one text, so that others are stopped and read again.
SIZES: dict = {"pages": 8, "page_size": 4, "rows": 2, "chunk": 8, "length": 32, "few": True}


def config(attention: str) -> ModelConfig:
    """A decoder with a window in one layer of two, which is shorter than an image."""
    return replace(DECODER, image=replace(IMAGE, attention=attention))


def engine(attention: str, **settings) -> Engine:
    # A prompt that is seen whole has up to 12 tokens beside an image here.
    sizes = SIZES | ({"chunk": 16} if attention == "prefix" else {})
    return Engine(Model(config(attention)), parameters(), Letters(), **{**sizes, **settings})


@cache
def loop(attention: str, sampling: SamplingConfig) -> list[Generation]:
    """What the decoding loop writes of the requests of tests/serve/test_media.py."""
    asked = asked_with(sampling)
    media = {name: [dict(one.media).get(name) for one in asked] for name in ("images", "sounds")}
    prompts = [one.prompt for one in asked]
    return generate(Model(config(attention)), parameters(), Letters(), prompts, sampling, **media)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "seeded"])
@pytest.mark.parametrize("attention", ["block", "prefix"])
def test_texts_are_those_of_the_loop_whatever_runs_beside_them(attention, sampling):
    served = engine(attention)
    texts = served.generate(asked_with(sampling))
    for got, want in zip(texts, loop(attention, sampling), strict=True):
        assert (got.token_ids, got.finish) == (want.token_ids, want.finish)
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)
    assert served.counts.preempted and served.pages.held == 0


def written(served: Engine, ids: list[int], seed: int, **settings):
    """A greedy text behind a prompt with a picture of this seed."""
    sampling = replace(GREEDY, max_tokens=3)
    return served.generate([Request(ids, sampling, media={"images": picture(seed)}, **settings)])[0]


@pytest.mark.slow
def test_pages_are_shared_with_the_same_block_alone():
    ids = [*range(6), SEEN, 3, 4, 5]  # a page of words, three with the picture, two words
    others = [*ids[:-1], 6]
    # Of a prompt that is seen whole nothing is that of another prompt.
    for attention, shared in (("block", 16), ("prefix", 0)):
        served, alone = engine(attention), engine(attention, share=False)
        first, again, behind, other = (
            written(served, one, seed) for one, seed in ((ids, 0), (ids, 0), (others, 0), (ids, 1))
        )
        found = [one.cached_tokens for one in (first, again, behind, other)]
        assert found == [0, 16, shared, 4 if attention == "block" else 0]
        for got, one, seed in ((again, ids, 0), (behind, others, 0), (other, ids, 1)):
            want = written(alone, one, seed)
            assert got.token_ids == want.token_ids
            np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)


@pytest.mark.slow
def test_a_block_whose_beginning_is_found_goes_on_behind_it():
    # The prompt ends with its picture, in the midst of a page: two pages of the block are found.
    ids, served = [1, 2, 3, SEEN], engine("block")
    first, again = written(served, ids, 0), written(served, ids, 0)
    assert (first.cached_tokens, again.cached_tokens) == (0, 8)
    assert first.token_ids == again.token_ids
    np.testing.assert_allclose(again.logprobs, first.logprobs, atol=TOLERANCE)


@pytest.mark.slow
def test_clients_that_leave_change_no_text_and_keep_no_page():
    served, rng, gone = engine("block"), np.random.default_rng(1), set()
    texts = [served.submit(one) for one in asked_with(DRAWN) * 2]
    while not all(text.finish for text in texts):
        served.step()
        if rng.random() < 0.1:
            gone.add(int(rng.integers(len(texts))))
            served.cancel(texts[max(gone)])
    assert served.pages.held == 0 and served.counts.preempted > 0 and gone
    for text, want in zip(texts, loop("block", DRAWN) * 2, strict=True):
        got = text.completion()
        assert want.token_ids[: len(got.token_ids)] == got.token_ids
        assert text.finish == "cancelled" or got.text == want.text


@pytest.mark.slow
def test_a_rounded_cache_gives_a_block_the_same_whatever_runs_beside_it():
    asked, alone = asked_with(GREEDY), engine("block", bits=8, share=False)
    together = engine("block", bits=8).generate(asked)
    for number in (0, 1, 5, 6):
        got, [want] = together[number], alone.generate([asked[number]])
        assert got.token_ids == want.token_ids
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)
    # To round is off by 0.0011 here, to see a block up to the end of its own page by 0.0043.
    exact = loop("block", GREEDY)[1].logprobs[0]
    np.testing.assert_allclose(together[1].logprobs[0], exact, atol=0.002)


BLOCKS = st.lists(st.integers(1, 9), max_size=5)


@given(st.lists(st.tuples(BLOCKS, st.integers(0, 3)), min_size=1, max_size=5), st.integers(0, 40))
def test_no_step_cuts_a_block_and_every_text_is_read(texts, free):
    """Texts of blocks, with so many words between them, are read by steps of 9 tokens at most."""
    made, ends = {}, {}
    for number, (sizes, words) in enumerate(texts):
        ends[number], at = [], words
        for size in sizes:
            ends[number].append((at, at + size))
            at += size + words
        made[number] = Running(number, at + 1, 0, 0, 0, blocks=tuple(ends[number]))
    budget, cached = Budget(3, 4, ((1, 9), (2, 4))), dict.fromkeys(made, 0)
    running: list[int] = []
    pages = sum(-(-one.length // 4) for one in made.values()) + free
    while left := [n for n, one in made.items() if cached[n] < one.length]:
        held = {n: -(-cached[n] // 4) for n in running}
        state = State(
            tuple(
                replace(made[n], cached=cached[n], pages=held[n], alone=held[n]) for n in running
            ),
            tuple(
                Waiting(n, made[n].length, blocks=made[n].blocks) for n in left if n not in running
            ),
            pages - sum(held.values()),
        )
        plan = schedule(state, budget)
        assert plan.chunks or plan.singles
        running += plan.admitted
        for number, tokens in [*plan.chunks, *((n, 1) for n in plan.singles)]:
            cached[number] += tokens
            assert tokens and not any(f < cached[number] < e for f, e in ends[number])
        running = [n for n in running if cached[n] < made[n].length]


def test_what_tells_pages_apart_is_all_of_their_block():
    def digests(attention: str, ids: list[int], seed: int = 0) -> list[bytes]:
        one = Soft(config(attention), ids, {"images": picture(seed)})
        return [one.digest(first, first + 4) for first in range(0, len(ids), 4)]

    places = [SEEN] * 9
    ids = [1, 2, *places, 3, 4, 5, 6, 7]
    for attention in ("block", "prefix"):
        same, other = digests(attention, ids), digests(attention, ids, 1)
        assert same == digests(attention, ids) and same[0] != other[0] and same[2] != other[2]
        behind = digests(attention, [*ids[:-1], 8])
        assert (behind[0] == same[0]) == (attention == "block")
    # The same places, of which a word parts the last.
    parted = digests("block", [1, 2, *places[:6], 3, *places[6:], 4, 5, 6, 7])
    assert parted[0] != digests("block", ids)[0]
    spans = Soft(config("block"), ids, {"images": picture(0)}).spans(1, 4)
    assert spans.tolist() == [[1, 1], [2, 10], [2, 10]]


def test_a_prompt_that_is_seen_whole_must_have_room_in_a_step():
    served = engine("prefix", length=32)
    with pytest.raises(ValueError, match="30 tokens, which this model sees whole .* chunk of 21 "):
        served.submit(Request([SEEN, *[1] * 21], GREEDY, media={"images": picture(0)}))
    assert not served.waiting
    # Without an image nothing is seen whole.
    served.cancel(served.submit(Request([1] * 30, GREEDY)))
    assert engine("block", chunk=4).shapes.chunk == 9
