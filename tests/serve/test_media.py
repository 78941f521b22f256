"""Images and sounds in an engine: texts are those of the loop whatever runs beside them, and no
page is shared with a text that has another picture in the same places."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.infer.decode import Generation, generate
from research.infer.sampling import SamplingConfig
from research.models.config import ModelConfig
from research.models.image_config import ImageConfig
from research.models.model import Model
from research.models.sound_config import SoundConfig
from research.models.spec import initialize, shardings
from research.parallel.axes import RULES
from research.parallel.mesh import make_mesh
from research.serve import soft
from research.serve.engine import Engine
from research.serve.request import Request
from research.serve.step import step
from research.serve.warm import warm
from research.weights.rules import attach
from tests.serve.engines import Letters
from tests.tuning.test_several import adapter

SEEN, HEARD = 40, 41  # behind the vocabulary
IMAGE = ImageConfig(layers=1, size=6, patch=2, d_model=8, heads=2, d_ff=12, token=SEEN)
SOUND = SoundConfig(
    **{"layers": 1, "mels": 3, "frames": 20, "d_model": 8, "heads": 2, "d_ff": 12, "stack": 2},
    token=HEARD,
)
DECODER = ModelConfig(
    **{"vocab_size": 32, "layers": 2, "d_model": 16, "heads": 2, "kv_heads": 2, "head_size": 8},
    **{"d_ff": 24, "max_length": 64, "window": 6, "global_every": 2},
    image=IMAGE,
    sound=SOUND,
)
GREEDY = SamplingConfig(temperature=0.0, max_tokens=5)
DRAWN = SamplingConfig(temperature=0.9, top_p=0.9, max_tokens=5, seed=3, repetition_penalty=1.2)
# Sums of the same float32 products in another order; log-probabilities are of the order of 3.
TOLERANCE = 1e-5
# A pool with room for one text, so that others are stopped and read again.
SIZES: dict = {"pages": 8, "page_size": 4, "rows": 2, "chunk": 8, "length": 32, "few": True}


@cache
def parameters() -> dict:
    drawn = initialize(jax.random.key(0), Model(DECODER).specs(), jnp.float32)
    # Wide enough apart that a text depends on what it sees.
    return jax.tree.map(lambda w: 4 * w, drawn)


def engine(**settings) -> Engine:
    return Engine(Model(DECODER), parameters(), Letters(), **{**SIZES, **settings})


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, 6, 6, 3), dtype=np.uint8)


def sound(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 20, 3)).astype(np.float32)


@cache
def loop(config: SamplingConfig) -> list[Generation]:
    """What the decoding loop writes of `asked`."""
    prompts, given = zip(*asked())
    media = {name: [one.get(name) for one in given] for name in soft.KINDS}
    return generate(Model(DECODER), parameters(), Letters(), prompts, config, **media)


def requests(config: SamplingConfig) -> list[Request]:
    """Those of `asked`, with the random numbers that the loop gives to equal prompts."""
    return [
        Request(ids, config, copy=int(number in (1, 4)), media=media)
        for number, (ids, media) in enumerate(asked())
    ]


def asked() -> list[tuple[list[int], Mapping[str, np.ndarray]]]:
    """Prompts that name a place once, with their media: a picture is longer than a chunk of 8."""
    both = {"images": np.concatenate([picture(2), picture(3)]), "sounds": sound(4)}
    return [
        ([1, 2, SEEN, 3, 4], {"images": picture(0)}),
        ([1, 2, SEEN, 3, 4], {"images": picture(1)}),  # the same ids
        ([5, 6, 7], {}),
        ([8, HEARD, 9], {"sounds": sound(0)}),
        ([8, HEARD, 9], {"sounds": sound(1)}),
        ([SEEN, 3, HEARD, 4, SEEN], both),  # at the beginning and at the end
        ([1, 2, SEEN, 3, 4, *range(12)], {"images": picture(0)}),
    ]


@pytest.mark.parametrize("config", [DRAWN, pytest.param(GREEDY, marks=pytest.mark.slow)])
def test_texts_with_media_are_those_of_the_loop_whatever_runs_beside_them(config):
    before = step._cache_size(), soft._encoded._cache_size()
    served = engine()
    texts = served.generate(requests(config))
    for got, want in zip(texts, loop(config), strict=True):
        assert (got.token_ids, got.text, got.finish) == (want.token_ids, want.text, want.finish)
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)
    # Pictures and sounds reach the words, or the others above would be equal for nothing.
    assert texts[0].logprobs != texts[1].logprobs and texts[3].logprobs != texts[4].logprobs
    assert served.pages.held == 0
    assert step._cache_size() - before[0] <= len(list(served.shapes.all()))
    assert soft._encoded._cache_size() - before[1] <= 2  # a program a kind


def encoded(served: Engine, monkeypatch) -> list[bytes]:
    """The digests of the media that an engine encodes from now on."""
    seen, encode = [], served.runner.encode
    monkeypatch.setattr(
        served.runner,
        "encode",
        lambda one, adapter: seen.append(one.digest) or encode(one, adapter),
    )
    return seen


def test_pages_are_shared_with_the_same_picture_alone_which_is_then_not_encoded(monkeypatch):
    served = engine()
    seen = encoded(served, monkeypatch)
    ids = [*range(6), SEEN, 3, 4, 5]  # a page of words, three with the picture, two words
    first, again, other = (
        served.generate([Request(ids, GREEDY, media={"images": picture(seed)})])[0]
        for seed in (0, 0, 1)
    )
    assert (first.cached_tokens, again.cached_tokens, other.cached_tokens) == (0, 16, 4)
    assert len(seen) == 2 and len(set(seen)) == 2
    np.testing.assert_allclose(again.logprobs, first.logprobs, atol=TOLERANCE)
    alone = engine(share=False)
    [want] = alone.generate([Request(ids, GREEDY, media={"images": picture(1)})])
    assert other.token_ids == want.token_ids
    np.testing.assert_allclose(other.logprobs, want.logprobs, atol=TOLERANCE)


def test_clients_that_leave_change_no_text_and_keep_no_page():
    served = engine()
    read = served.submit(requests(DRAWN)[0])
    served.step()
    assert read.soft._vectors  # in the midst of its picture
    served.step()
    assert not read.soft._vectors and not read.finish
    served.cancel(read)
    half = served.submit(requests(DRAWN)[1])
    served.step()
    served.cancel(half)
    assert not half.soft._vectors
    texts = [served.submit(one) for one in requests(DRAWN) * 2]
    rng, gone = np.random.default_rng(1), set()
    while not all(text.finish for text in texts):
        served.step()
        if rng.random() < 0.1:
            gone.add(int(rng.integers(len(texts))))
            served.cancel(texts[max(gone)])
    assert served.pages.held == 0 and served.counts.preempted > 0 and gone
    assert not any(text.soft._vectors for text in texts)
    for text, want in zip(texts, loop(DRAWN) * 2, strict=True):
        got = text.completion()
        assert want.token_ids[: len(got.token_ids)] == got.token_ids
        assert text.finish == "cancelled" or got.text == want.text


@pytest.mark.slow
def test_guesses_and_meshes_change_no_text():
    drafted = engine(drafts=2)
    longer = replace(GREEDY, max_tokens=16)
    asked = Request([1, 2, 1, SEEN, 1, 2], longer, media={"images": picture(0)})
    [got] = drafted.generate([asked])
    [want] = engine().generate([asked])
    assert got.token_ids == want.token_ids and drafted.counts.guessed > 0
    made = make_mesh("data:2,tensor:2", jax.devices()[:4])
    with jax.set_mesh(made):
        places = shardings(Model(DECODER).specs(), made, RULES)
        params = jax.device_put(parameters(), places)
        split = Engine(Model(DECODER), params, Letters(), **SIZES)
    [got] = split.generate([asked])
    assert got.token_ids == want.token_ids
    # Sums of two parts.
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)


@pytest.mark.slow
def test_what_is_compiled_at_the_start_serves_every_text():
    # Committed to a device, as those of a checkpoint are.
    params = jax.device_put(parameters(), jax.devices()[0])
    served = Engine(Model(DECODER), params, Letters(), **SIZES)
    warm(served, 32)
    before = step._cache_size(), soft._encoded._cache_size()
    served.generate(requests(GREEDY))
    assert (step._cache_size(), soft._encoded._cache_size()) == before


@pytest.mark.slow
def test_an_adapter_of_the_encoder_sees_with_it():
    trees = {
        name: adapter(number, "query|down", Model(DECODER).specs(), rank=2)
        for number, name in enumerate(("one", "two"))
    }
    assert any("image" in path for path in tree.paths(trees["one"]))
    served = engine(adapters=trees)
    seen = {"images": picture(0), "sounds": sound(0)}
    asked = Request([1, SEEN, 2, HEARD, 3], GREEDY, media=seen)
    [got] = served.generate([replace(asked, adapter="two")])
    alone = Engine(Model(DECODER), attach(parameters(), trees["two"]), Letters(), **SIZES)
    [want] = alone.generate([asked])
    assert got.token_ids == want.token_ids
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("ids", "media", "line"),
    [
        ([1, SEEN, 2], {}, "prompt 0 has places of images .id 40., and none are given"),
        ([1, HEARD, 2], {}, "prompt 0 has places of sounds .id 41., and none are given"),
        ([1, 2], {"images": picture(0)}, "0 places of id 40, and its 1 images take 9; name"),
        ([1, SEEN], {"images": picture(0), "sounds": sound(0)}, "0 places of id 41"),
        ([1, SEEN, SEEN], {"images": picture(0)}, "2 places of soft tokens and 1 images"),
        ([1, SEEN], {"images": picture(0)[:, :5]}, "wanted .rows, images of a row, 6, 6, 3."),
        ([*[1] * 60, SEEN], {"images": picture(0)}, "69 tokens, and a text of this engine at most"),
    ],
)
def test_places_and_media_that_do_not_fit_are_refused_before_anything_is_written(ids, media, line):
    served = engine()
    with pytest.raises(ValueError, match=line):
        served.submit(Request(ids, GREEDY, media=media))
    assert not served.waiting


def test_what_an_engine_does_not_read_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="leave out the media or prompt_logprobs"):
        engine().submit(Request([SEEN], GREEDY, media={"images": picture(0)}, prompt_logprobs=True))
