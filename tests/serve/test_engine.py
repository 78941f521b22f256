"""The engine: a text does not depend on what is written beside it, and nothing is left behind."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.infer.decode import generate
from research.infer.sampling import SamplingConfig, log_probability
from research.models.model import Model, forward
from research.serve import runner as runner_module
from research.serve.draw import Told
from research.serve.engine import Engine
from research.serve.request import Request
from research.serve.step import step
from research.weights.rules import attach
from tests.families import FAMILIES, VOCAB
from tests.serve.engines import Letters, engine, model, prompt, requests
from tests.tuning.test_several import adapter

# Sums of the same float32 products in another order; log-probabilities are of the order of 5.
TOLERANCE = 1e-5
GREEDY = SamplingConfig(temperature=0.0, max_tokens=6)


def test_one_call_serves_all_streams(monkeypatch):
    calls = []
    monkeypatch.setattr(
        runner_module, "step", lambda *args, **how: calls.append(how["shape"]) or step(*args, **how)
    )
    served = engine()
    # Prompts of one token: nothing to read before the first step.
    texts = served.generate([Request([number], GREEDY) for number in range(4)])
    assert [len(text.token_ids) for text in texts] == [6] * 4
    assert [shape.singles for shape in calls] == [4] * 6


def test_texts_with_one_beginning_share_its_pages():
    many = replace(GREEDY, max_tokens=12)
    asked = [Request([*prompt(16), number], many) for number in range(4)]
    held = {}
    for share in (True, False):
        served, most = engine(share=share), 0
        texts = [served.submit(one) for one in asked]
        while not all(text.finish for text in texts):
            served.step()
            most = max(most, served.pages.held)
        held[share] = most, [text.token_ids for text in texts]
    # Four pages of the beginning once and not four times, and three or fewer of each text's own.
    assert held[True][0] <= 4 + 4 * 3 and held[False][0] >= 4 * 5
    assert held[True][1] == held[False][1]


def test_a_crowd_in_a_pool_for_one_writes_what_each_writes_alone():
    longest = 32
    asked = requests(64, longest)
    # 1.2 times the pages of one request: texts are stopped for want of pages all the time.
    served = engine(pages=int(1.2 * longest / 4), length=longest)
    rng, before = np.random.default_rng(1), step._cache_size()
    texts = [served.submit(one) for one in asked]
    gone = set()
    while not all(text.finish for text in texts):
        served.step()
        if rng.random() < 0.1:
            gone.add(int(rng.integers(len(texts))))
            served.cancel(texts[max(gone)])
    assert served.pages.held == 0 and served.counts.preempted > 0
    alone = engine(pages=8, length=longest, share=False)
    for text in texts:
        [want] = alone.generate([text.request])
        got = text.completion()
        if text.finish == "cancelled":
            assert want.token_ids[: len(got.token_ids)] == got.token_ids
        else:
            assert (got.text, got.finish) == (want.text, want.finish)
            np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)
    shapes = set(served.shapes.all()) | set(alone.shapes.all())
    assert step._cache_size() - before <= len(shapes)


def test_a_text_is_the_same_bits_whatever_is_beside_it():
    logprobs = []
    for other in (1, 2):
        served = engine(share=False)
        beside = [Request(prompt(9, other + number), GREEDY) for number in (0, 10, 20)]
        got = served.generate([*beside[:2], Request(prompt(9), GREEDY), *beside[2:]])
        logprobs.append(got[2].logprobs)
    assert logprobs[0] == logprobs[1]


DRAWN = SamplingConfig(top_p=0.9, temperature=0.8, max_tokens=6, seed=3, scored="sampled")


def test_it_writes_what_the_loop_of_one_batch_writes():
    prompts = [prompt(5), prompt(11, 1), prompt(5)]
    want = generate(*model(), Letters(), prompts, DRAWN)
    # Equal prompts are numbered there.
    asked = [Request(ids, DRAWN, copy) for ids, copy in zip(prompts, (0, 0, 1))]
    for got, one in zip(engine().generate(asked), want):
        assert (got.token_ids, got.text, got.finish) == (one.token_ids, one.text, one.finish)
        np.testing.assert_allclose(got.logprobs, one.logprobs, atol=TOLERANCE)


# A window, sinks and experts; and what other decoders have beside: learned positions, softcaps,
# latents and a first layer without experts, a rotation by length, layers without one.
NAMES = ["gpt_oss_20b", "gpt2", "gemma2_2b", "deepseek_v3", "phi4_mini", "smollm3_3b"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_is_read_as_in_training(name):
    # Prompts longer than windows, in chunks, and then token by token.
    served = engine(name, rows=1, page_size=2, chunk=4)
    length = min(14, served.length - 2)
    asked = Request(prompt(length), GREEDY, prompt_logprobs=True)
    [got] = served.generate([asked])
    want = trained(name, [*asked.prompt, *got.token_ids])
    # Sums in another order, which latents have more of.
    np.testing.assert_allclose([*got.prompt_logprobs, *got.logprobs], want, atol=3e-5)
    assert served.pages.held == 0


def trained(name: str, ids: list[int], width: int | None = None) -> np.ndarray:
    """The log-probability of each token but the first, by the function that training calls."""
    width = width or len(ids)
    batch = {
        "inputs": np.array([ids + [0] * (width - len(ids))]),
        "positions": np.arange(width)[None],
        "segments": (np.arange(width) < len(ids)).astype(np.int32)[None],
    }
    logits_TV = jax.jit(forward, static_argnums=0)(*model(name), batch)[0]
    return np.array(log_probability(logits_TV[: len(ids) - 1], jnp.array(ids[1:])))


def test_its_log_probabilities_are_the_trainers_to_the_bit_in_equal_shapes():
    served = engine(pages=4, page_size=16, rows=1, chunk=32, length=32, prepared=False)
    asked = Request(prompt(31), replace(GREEDY, max_tokens=1), prompt_logprobs=True)
    [got] = served.generate([asked])
    # A step of 32 tokens over 32 keys, and a window of 32 tokens.
    want = trained("llama3_405b", prompt(31), width=32)
    np.testing.assert_array_equal(np.float32(got.prompt_logprobs), want)


@pytest.mark.slow
def test_a_long_shared_beginning_is_computed_once():
    beginning = 1000
    big = replace(FAMILIES["llama3_405b"], max_length=1100)
    served = Engine(
        replace(model()[0], config=big), model()[1], Letters(), pages=80, rows=2, chunk=256
    )
    asked = [Request([*prompt(beginning), 5 + n], replace(GREEDY, max_tokens=2)) for n in (0, 1)]
    served.generate(asked[:1])
    before = served.counts.computed
    [got] = served.generate(asked[1:])
    # All but a page of the beginning, beside the last token of the prompt and the first new one.
    assert served.counts.computed - before <= served.pages.page_size + 2
    assert got.cached_tokens == beginning // 16 * 16
    served.pages.forget()
    [want] = served.generate(asked[1:])
    assert want.cached_tokens == 0 and want.text == got.text
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)


def test_salts_share_nothing():
    served = engine()
    for salt in ("a", "b"):
        [got] = served.generate([Request(prompt(12), GREEDY, salt=salt)])
        assert got.cached_tokens == 0


@pytest.mark.parametrize("operations", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_page_is_lost_after_random_operations(operations, monkeypatch):
    rng = np.random.default_rng(operations)

    def _any_tokens(params, pools, row, guess, *, model, shape):
        told = Told(
            rng.integers(0, 3, shape.drawn), np.zeros(shape.drawn), *np.zeros((2, shape.drawn, 20))
        )
        return pools, told, None

    monkeypatch.setattr(runner_module, "step", _any_tokens)
    served, texts = engine(pages=9, length=32, drafts=2), []
    for _ in range(operations):
        chosen = rng.random()
        if chosen < 0.25 and len(texts) < 30:
            # Of three tokens, so that many begin alike.
            ids = rng.integers(0, 3, rng.integers(1, 24)).tolist()
            texts.append(served.submit(Request(ids, replace(GREEDY, max_tokens=8))))
        elif chosen < 0.35 and texts:
            served.cancel(texts[rng.integers(len(texts))])
        else:
            served.step()
        texts = [text for text in texts if not text.finish]
        check_pages(served, texts)
    while texts:
        served.step()
        texts = [text for text in texts if not text.finish]
    assert served.pages.held == 0 and served.counts.found > 0 and served.counts.preempted > 0
    assert 0 < served.counts.kept < served.counts.guessed


def check_pages(served: Engine, texts: list) -> None:
    """The references of pages are those of the texts, and a page is blank, idle or held."""
    pages = served.pages
    held = np.bincount([p for text in texts for p in text.pages], minlength=pages.count)
    assert held.tolist() == pages._references
    places = [*pages._blank, *pages._idle, *np.flatnonzero(held)]
    assert sorted(places) == list(range(pages.count))


def test_stops_and_alternatives():
    served = engine()
    [plain] = served.generate([Request(prompt(6), replace(GREEDY, max_tokens=8))])
    # A stop string of two tokens is cut off, its tokens are told.
    stop = replace(GREEDY, max_tokens=8, stop=(plain.text[2:4],))
    asked = Request(prompt(6), stop, alternatives=3, prompt_logprobs=True)
    [got] = served.generate([asked])
    at = plain.text.find(plain.text[2:4])
    assert (got.finish, got.text) == ("stop", plain.text[:at])
    assert len(got.alternatives) == len(got.token_ids) == at + 2
    # The likeliest is what greedy decoding takes, and it is told with the same number.
    assert [ranked[0][0] for ranked in got.alternatives] == list(got.token_ids)
    assert [ranked[0][1] for ranked in got.alternatives] == list(got.logprobs)
    assert [len(ranked) for ranked in got.prompt_alternatives] == [3] * 5


@pytest.mark.parametrize(
    "asked, message",
    [
        (Request([VOCAB], GREEDY), "ids in"),
        (Request([], GREEDY), "one or more ids"),
        (Request(prompt(32), GREEDY), "32 tokens, and a text of this engine at most 32"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused_before_anything_runs(asked, message):
    served = engine()
    with pytest.raises(ValueError, match=message):
        served.generate([Request([1], GREEDY), asked])
    assert served.waiting == served.counts.steps == 0


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("bert_base", {}, "an encoder"),
        ("t5_small", {}, "an encoder_decoder"),
        ("llama3_405b", {"length": 33}, "at most the 32"),
        ("llama3_405b", {"pages": 0}, "at least 1"),
        ("llama3_405b", {"rows": 0}, "rows=0"),
        ("phi4_mini", {"length": 7}, "at most the 4"),
    ],
)
def test_what_an_engine_cannot_run_is_refused(name, settings, message):
    settings = {"pages": 32, "page_size": 4, **settings}
    with pytest.raises(ValueError, match=message):
        Engine(Model(FAMILIES[name]), {}, Letters(), **settings)


ADAPTED = (("query|out|up|down", 4), ("query|down", 2))  # other targets and ranks


@pytest.mark.slow
def test_texts_of_several_adapters_are_those_of_each_alone():
    made, params = model()
    trees = {
        name: adapter(number, targets, made.specs(), rank=rank)
        for number, (name, (targets, rank)) in enumerate(zip(("pirate", "poet"), ADAPTED))
    }
    both = engine(adapters=trees)
    names = ("pirate", "", "poet", "pirate")
    asked = [Request(prompt(9), GREEDY, adapter=name) for name in names]
    got = both.generate(asked)
    for name, one in zip(names[:3], got):
        own = attach(params, trees[name]) if name else params
        alone = Engine(made, own, Letters(), pages=8, page_size=4, rows=1, chunk=16)
        [want] = alone.generate([Request(prompt(9), GREEDY)])
        assert one.token_ids == want.token_ids
        np.testing.assert_allclose(one.logprobs, want.logprobs, atol=TOLERANCE)
    assert len({one.token_ids for one in got}) == 3
    # Its own beginning is found again, and no one else's.
    [again] = both.generate([Request(prompt(9), GREEDY, adapter="poet")])
    assert again.cached_tokens == 8 and again.token_ids == got[2].token_ids
    assert [one.cached_tokens for one in got[:3]] == [0, 0, 0]
    with pytest.raises(ValueError, match="pirate, poet"):
        both.submit(Request(prompt(9), GREEDY, adapter="prose"))
