"""The engine as a function writes what the loop of one batch writes."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.parallel.mesh import make_mesh
from research.serve import batch
from research.serve.shapes import Shape, Shapes
from tests.families import FAMILIES
from tests.serve.engines import Letters, model, prompt

SAMPLED = SamplingConfig(max_tokens=6, seed=3, temperature=0.8, scored="sampled")


@pytest.mark.slow
def test_it_writes_the_texts_of_the_loop():
    # Groups of equal prompts, as rollouts have them, and beginnings that prompts share.
    asked = [prompt(20)] * 3 + [[*prompt(18), 1, 2], prompt(3, 1)] + [prompt(20)]
    wants = generate(*model(), Letters(), asked, SAMPLED)
    for got, want in zip(batch.write(*model(), Letters(), asked, SAMPLED), wants):
        assert replace(got, logprobs=()) == replace(want, logprobs=())
        # Sums of the same float32 products in another order.
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)


@pytest.mark.parametrize(
    "name, tokens", [("t5_small", 4), ("phi4_mini", 9)], ids=["encoder_decoder", "long"]
)
def test_what_the_engine_does_not_run_is_left_to_the_loop(name, tokens, monkeypatch):
    monkeypatch.setattr(batch, "generate", lambda *asked: asked)
    config = replace(SAMPLED, max_tokens=tokens)
    asked = Model(FAMILIES[name]), {}, Letters(), [prompt(5), prompt(4)], config
    assert batch.write(*asked) == asked


def test_a_mesh_of_rows_processes_cards_and_one_prompt_are_left_to_the_loop(monkeypatch):
    monkeypatch.setattr(batch, "generate", lambda *asked: "loop")
    monkeypatch.setattr(batch.Engine, "generate", lambda engine, requests: [])
    assert batch.write(*model(), Letters(), [prompt(5)], SAMPLED) == "loop"
    asked = *model(), Letters(), [prompt(5), prompt(4)], SAMPLED
    for mesh, wants in (("fsdp:2", "loop"), ("context:2", "loop"), ("tensor:2", [])):
        with jax.set_mesh(make_mesh(mesh, jax.devices()[:2])):
            assert batch.write(*asked) == wants
    for name, value in (("process_count", 2), ("default_backend", "gpu")):
        with monkeypatch.context() as patch:
            patch.setattr(jax, name, lambda value=value: value)
            assert batch.write(*asked) == "loop"


def test_few_shapes_have_one_number_of_texts_and_of_pages():
    shapes = list(Shapes(rows=32, chunk=64, pages=40, page_size=16, few=True).all())
    # One text is read, or the 16 that have 1,024 tokens, or few tokens of all.
    written, *read = [shape for shape in shapes if not shape.scored]
    assert written == Shape(32, 0, 40)
    assert [(s.singles, s.pages, s.reads, s.chunk) for s in read] == [
        (32, 40, 1, 64), (32, 40, 16, 64), (32, 40, 32, 32),
    ]  # fmt: skip
    one = Shapes(rows=1, chunk=64, pages=40, page_size=16, few=True)
    assert [(s.singles, s.chunk) for s in one.all() if not s.scored] == [(1, 0), (1, 64)]


def test_nothing_is_written_of_no_prompts():
    assert batch.write(*model(), Letters(), [], SAMPLED) == []
