"""The largest that fits, on compilers that are functions of one number."""

import json
from dataclasses import dataclass

import pytest

from research.fit import solve as solving
from research.fit.report import Fit
from research.fit.solve import PRECISION, Variable, largest, variable
from research.fit.targets import parse_target
from research.run.resolve import from_config
from tests.configs import load_config
from tests.fit.fits import fit_json


@dataclass(frozen=True)
class Held:
    """What `largest` reads of a Fit."""

    total: int
    capacity: int = 1_000_000

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


# Memory as it grows: in a line, with a jump as where a compiler starts to spill, quadratically, in
# stairs.
SHAPES = {
    "line": lambda n: 50_000 + 3 * n,
    "jump": lambda n: 50_000 + 2 * n + (400_000 if n > 150_000 else 0),
    "square": lambda n: 100_000 + n * n // 1000,
    "stairs": lambda n: 10_000 * (n // 3000 + 1),
    "flat, then too much": lambda n: 10 if n < 70_001 else 2_000_000,
}


@pytest.mark.parametrize("start", [1, 128, 4096, 10**6])
@pytest.mark.parametrize("step", [1, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_answer_fits_and_a_little_more_does_not(shape, step, start):
    asked = []

    def ask(value):
        assert value % step == 0 and value > 0
        asked.append(value)
        return Held(SHAPES[shape](value))

    (value, fit), (beyond, more) = largest(ask, Variable(start, step, lambda n: {}))
    assert fit.fits and not more.fits and value < beyond <= value + max(step, value // PRECISION)
    assert len(asked) == len(set(asked)) <= 30  # bisection of 2**30 alone would be 30


def test_a_line_takes_few_compiles():
    asked = []
    largest(lambda n: asked.append(n) or Held(50_000 + 3 * n), Variable(2048, 128, lambda n: {}))
    assert len(asked) <= 6


def test_nothing_fits_and_everything_fits():
    best, worst = largest(lambda n: Held(2_000_000), Variable(4096, 128, lambda n: {}))
    assert best is None and worst[0] == 128
    best, worst = largest(lambda n: Held(5), Variable(100, 1, lambda n: {}, most=4096))
    assert best[0] == 4096 and worst is None


def test_what_is_varied_follows_the_experiment():
    tuned = from_config(load_config("finetune", "model=llama3_8b,method=qlora"))
    assert variable(tuned, "rank", 1).most == 1024  # keys and values of eight heads of 128
    assert variable(tuned, "batch", 8).settings(16) == {"data__batch_size": 16}
    trained = from_config(load_config("pretrain", "model=gpt2"))
    assert variable(trained, "context", 1).most == 1024  # learned positions
    assert variable(trained, "batch", 8).settings(16) == {"data__batch_size_per_device": 16}
    with pytest.raises(ValueError, match="config.tune.method='full'"):
        variable(trained, "rank", 1)


def said_of(monkeypatch, capsys, grows, what, arg, changes, capacity=100 * 2**30, **terms):
    """Exit code and output of `solve` where memory is this function of the experiment."""
    asked = []

    def answer(experiment, target, **given):
        asked.append(experiment)
        return Fit.from_json(fit_json(temporaries=int(grows(experiment)), capacity=capacity))

    monkeypatch.setattr(solving, "answer", answer)
    config = load_config("finetune", arg, **changes)
    code = solving.solve(from_config(config), parse_target("h100:2"), what, **terms)
    return code, capsys.readouterr().out


def told(monkeypatch, capsys, grows, what="context", **terms):
    """The same of one recipe, with the output as JSON."""
    arg = "model=llama3_8b,method=qlora"
    code, out = said_of(monkeypatch, capsys, grows, what, arg, {}, print_json=True, **terms)
    return code, json.loads(out)


@pytest.mark.parametrize(
    ("what", "changes", "words", "fixed"),
    [
        ("context", {}, " with a batch of 8: ", {"batch": 8}),
        ("context", {"data.batch_size": 2}, " with a batch of 2: ", {"batch": 2}),
        (
            "context",
            {"data.batch_size": 0, "data.batch_size_per_device": 3},
            " with a batch of 6: ",
            {"batch": 6},
        ),
        ("batch", {"data.sequence_length": 512}, " with rows of 512 tokens: ", {"context": 512}),
        (
            "rank",
            {"data.sequence_length": 512},
            " with a batch of 8 x 512 tokens: ",
            {"batch": 8, "context": 512},
        ),
    ],
)
def test_the_answer_names_what_of_the_batch_it_is_for(
    monkeypatch, capsys, what, changes, words, fixed
):
    arg, grows = (
        "model=llama3_8b,method=qlora",
        {
            "context": lambda e: e.data.sequence_length * 2**20,
            "batch": lambda e: e.data.batch_size * 2**30,
            "rank": lambda e: e.lora.rank * 2**28,
        }[what],
    )
    asked = monkeypatch, capsys, grows, what, arg, changes
    _, out = said_of(*asked, print_json=False)
    assert f"is the largest that fits{words}" in out.split("\n")[0]
    values = json.loads(said_of(*asked, print_json=True)[1])
    assert {name: values[name] for name in fixed} == fixed
    _, out = said_of(monkeypatch, capsys, lambda e: 2**40, *asked[3:], print_json=False)
    assert f"does not fit{words}" in out


def test_the_answer_is_a_fit_with_the_value(monkeypatch, capsys):
    code, said = told(monkeypatch, capsys, lambda e: e.data.sequence_length * 2**20)
    assert code == 0 and said["fits"] and said["context"] == 96 * 1024  # 4 of the 100 GiB are held
    code, said = told(monkeypatch, capsys, lambda e: e.model.layers * 2**30, what="layers")
    assert code == 0 and said["layers"] == 96
    code, said = told(monkeypatch, capsys, lambda e: 2**40)
    assert code == 3 and said["context"] == 0 and not said["fits"]
    with pytest.raises(ValueError, match="--capacity_gib"):
        told(monkeypatch, capsys, lambda e: 1, capacity=None)
