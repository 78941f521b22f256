"""Several prompts are read in one step, and what they have in common once."""

from dataclasses import replace

import numpy as np
import pytest

from research.infer.sampling import SamplingConfig
from research.serve import runner as runner_module
from research.serve.request import Request
from research.serve.schedule import Budget, Running, State, Waiting, schedule
from research.serve.shapes import Shape, Shapes
from research.serve.step import step
from tests.serve.engines import engine, prompt

# Sums of the same float32 products in another order; log-probabilities are of the order of 5.
TOLERANCE = 1e-5
GREEDY = SamplingConfig(temperature=0.0, max_tokens=3)
PARTS = ((1, 16), (1, 64), (2, 32), (4, 16))


def chunks(*waiting: Waiting, running: tuple[Running, ...] = (), rows: int = 4) -> tuple:
    """The texts that a step reads, with how many tokens of each."""
    return schedule(State(running, waiting, free=100), Budget(rows, 4, PARTS)).chunks


def test_texts_with_few_tokens_are_read_together_and_long_ones_alone():
    assert chunks(*(Waiting(n, 16) for n in range(5))) == tuple((n, 16) for n in range(4))
    # 17 tokens need the part for two, and what is read of the other is what is left of it.
    assert chunks(Waiting(0, 17), Waiting(1, 50), Waiting(2, 3)) == ((0, 17), (1, 32))
    assert chunks(Waiting(0, 33), Waiting(1, 3)) == ((0, 33),)
    assert chunks(Waiting(0, 100)) == ((0, 64),)
    # One that is being read comes first, and one that goes on is no text that is read.
    running = Running(0, 70, 64, 16, 16), Running(1, 9, 8, 3, 3)
    assert chunks(Waiting(2, 9), running=running) == ((0, 6), (2, 9))


def test_a_text_whose_beginning_is_being_read_waits_and_those_behind_it():
    assert chunks(Waiting(0, 9), Waiting(1, 9, follows=True), Waiting(2, 9)) == ((0, 9),)


def test_a_part_has_no_more_tokens_than_are_read_of_one_text():
    shapes = Shapes(rows=4, chunk=64, pages=40, page_size=16)
    assert tuple(shapes.parts()) == PARTS
    assert tuple(Shapes(rows=1, chunk=64, pages=40, page_size=16).parts()) == ((1, 16), (1, 64))
    assert shapes.fit(3, [9, 16, 2], 1) == Shape(4, 16, 8, reads=4)
    assert shapes.fit(3, [9, 17], 1) == Shape(4, 32, 8, reads=2)
    assert shapes.fit(0, [9], 1) == Shape(0, 16, 8)
    assert all(shape.read * shape.chunk <= 64 for shape in shapes.all())
    assert shapes.fit(0, [16] * 4, 1).tokens == 4 + 64


@pytest.mark.parametrize(
    "scored, bits",
    [(False, None), *(pytest.param(True, b, marks=pytest.mark.slow) for b in (None, 8))],
)
def test_prompts_read_in_one_call_have_the_texts_of_each_alone(scored, bits, monkeypatch):
    calls = []
    monkeypatch.setattr(
        runner_module, "step", lambda *args, **how: calls.append(how["shape"]) or step(*args, **how)
    )
    drawn = replace(GREEDY, temperature=0.9, seed=5)
    asked = [Request(prompt(length, length), drawn) for length in (14, 1)]
    asked += [Request(prompt(n, n), GREEDY, prompt_logprobs=scored) for n in (6, 9)]
    served = engine(chunk=64, share=False, bits=bits)
    got = served.generate(asked)
    assert [(shape.read, shape.chunk) for shape in calls] == [(4, 16), (0, 0), (0, 0)]
    assert served.pages.held == 0
    for one, request in zip(got, asked):
        [want] = served.generate([request])
        assert (one.token_ids, one.finish) == (want.token_ids, want.finish)
        np.testing.assert_allclose(one.logprobs, want.logprobs, atol=TOLERANCE)
        assert len(one.prompt_logprobs) == len(want.prompt_logprobs)
        np.testing.assert_allclose(one.prompt_logprobs, want.prompt_logprobs, atol=TOLERANCE)


def test_a_common_beginning_is_read_once_and_other_texts_beside_it():
    served = engine(chunk=64)
    # Three pages in common, another text, and two more that begin as the first.
    asked = [[*prompt(12), 1], prompt(13, 1), [*prompt(12), 2], [*prompt(12), 3, 4]]
    got = served.generate([Request(ids, GREEDY) for ids in asked])
    assert [one.cached_tokens for one in got] == [0, 0, 12, 12]
    # Each new token but the last of a text goes through the model, too.
    assert served.counts.computed == 13 + 13 + 1 + 2 + 4 * 2
