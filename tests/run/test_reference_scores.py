"""Runs on preferences and judgements: they resume bit for bit, and have the same losses where the
reference's log-probabilities are computed once."""

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from research.data.tokenizers import load_tokenizer
from research.files import read_json
from research.fit.compile import objective_without_data
from research.objectives.choose import make_objective
from research.parallel.mesh import place_batch
from research.run.program import make_program
from research.run.reference_scores import first_print
from research.run.session import prepare
from research.run.start import open_data
from research.training.checkpoint import Checkpoints
from research.training.metrics import read_rows
from research.training.step import eval_step
from research.weights.lora import LoraAdapter
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.data.chat_templates import TEMPLATES, save_tokenizer
from tests.families import FAMILIES

CHANGES = {"train.steps": 4, "train.eval_every": 2, "checkpoint.every": 2, "model.preset": ""}
CHANGES |= {"checkpoint.keep": 4, "optimizer.learning_rate": 1e-2, "data.batch_size": 4}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A folder with a checkpoint, pairs for "dpo" and judgements for "kto"."""
    folder = tmp_path_factory.mktemp("task")
    save_tokenizer(folder / "tokenizer", TEMPLATES["chatml"]["plain"])
    tokenizer = load_tokenizer(folder / "tokenizer")
    config = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, max_length=256)
    save_checkpoint(folder / "base", config)
    tokenizer.save(folder / "base")
    answers = [("good " * (1 + i % 3), "bad " * (1 + i % 2)) for i in range(60)]
    pairs = [
        {"prompt": f"say {i}", "chosen": good, "rejected": bad}
        for i, (good, bad) in enumerate(answers)
    ]
    judged = [
        {"prompt": f"say {i}", "completion": both[i % 2], "label": i % 2 == 0}
        for i, both in enumerate(answers)
    ]
    for name, rows in (("dpo", pairs), ("kto", judged)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, which it may empty."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(folder, name, method, **more):
    arg = f"task={name},method={method},data={folder / f'{name}.jsonl'},smoke"
    return experiment("posttrain", arg, init=str(folder / "base"), **CHANGES, **more)


def losses(run):
    rows = read_rows(run / "metrics.jsonl")
    return [row[key] for row in rows for key in ("loss", "eval/loss", "margin") if key in row]


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_the_first_loss_is_that_of_a_held_reference(name, task, tmp_path):
    found = []
    for kind in ("held", "cached"):
        e = settings(task, name, "full", **{"objective.reference": kind})
        corpus = open_data(e)
        objective = make_objective(e.objective, corpus.tokenizer, e.model)
        program = make_program(e, objective)
        with (
            jax.set_mesh(program.mesh),
            Checkpoints(tmp_path / kind / "checkpoints", e.checkpoint) as checkpoints,
        ):
            session, feed = prepare(e, tmp_path / kind, corpus, program, checkpoints, False)
            feed.begin(0, {})
            with feed:
                batch = place_batch(next(feed)[1], program.mesh, program.rules, program.batch_size)
        # As if some steps had been done, or both would be their own reference.
        moved = jax.tree.map(lambda w: w * 1.01, session.state.trainable)
        loss = jax.jit(partial(eval_step, model=program.model, objective=objective))
        totals = loss(moved, session.state.held, batch)
        found.append([float(one) for pair in totals.values() for one in pair])
        assert ("reference" in batch) == ("reference" not in session.state.held)
    # Another program adds the same numbers in another order.
    assert found[1] == pytest.approx(found[0], abs=1e-5) and found[0][0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name, method", [("dpo", "full"), ("kto", "lora")])
def test_a_run_resumes_bit_for_bit_and_a_cached_reference_has_its_losses(name, method, task, cache):
    from research.train import train

    runs = {}
    for kind in ("held", "cached"):
        e = settings(task, name, method, **{"objective.reference": kind})
        run, again = task / f"{name}-{kind}", task / f"{name}-{kind}-again"
        assert train(e, run, live=False).exit_code == 0
        shutil.copytree(run, again)
        shutil.rmtree(again / "checkpoints/4")
        # A resumed run makes the first state again where the cache was emptied.
        shutil.rmtree(cache / "reference", ignore_errors=True)
        assert train(e, again, live=False).exit_code == 0
        whole, resumed = (
            read_json(one / "checkpoints/4/record/metadata")["arrays"] for one in (run, again)
        )
        assert whole == resumed  # with the fingerprint of every array
        assert any(path.startswith("held/reference") for path in whole) == (kind == "held")
        runs[kind] = losses(run)
    assert len(runs["held"]) > 8 and runs["held"][0] != runs["held"][-2]
    # Another program adds the same numbers in another order.
    assert runs["cached"] == pytest.approx(runs["held"], abs=1e-6)


def test_adapters_that_add_nothing_yet_leave_the_reference_what_it_is():
    def print_of(seed, rank, b=0.0, bias=0.0):
        a, scale = jax.random.normal(jax.random.key(seed), (4, rank)), jnp.float32(1 / rank)
        pair = LoraAdapter(a, jnp.full((rank, 4), b), scale)
        trainable = {"query": pair, "norm": {"bias": jnp.full(4, bias)}}
        return first_print(SimpleNamespace(held={"base": {}}, trainable=trainable))

    assert print_of(0, 2) == print_of(1, 3)
    others = {print_of(0, 2, b=1.0), print_of(1, 2, b=1.0), print_of(0, 2, bias=1.0)}
    assert len(others | {print_of(0, 2)}) == 4


def test_a_cached_reference_takes_no_memory(task):
    held, cached = (
        settings(task, "dpo", "full", **{"objective.reference": kind})
        for kind in ("held", "cached")
    )
    frozen = [make_program(e, objective_without_data(e)).abstract_held for e in (held, cached)]
    assert set(frozen[0]) == {"base", "reference"} and set(frozen[1]) == {"base"}


@pytest.mark.slow
def test_another_start_is_refused_once_the_cache_is_empty(task, cache, tmp_path):
    from research.train import train

    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(task / "base", base)
    e = settings(task, "dpo", "full", **{"objective.reference": "cached"})
    e = replace(e, init=str(base), train=replace(e.train, steps=2))
    assert train(e, run, live=False).exit_code == 0
    shutil.rmtree(cache / "reference")
    shutil.rmtree(base)
    other = replace(FAMILIES["llama2_7b"], vocab_size=e.model.vocab_size, max_length=256)
    save_checkpoint(base, other, seed=1)
    load_tokenizer(task / "base").save(base)
    with pytest.raises(ValueError, match="not what the run began from"):
        train(replace(e, train=replace(e.train, steps=4)), run, live=False)
