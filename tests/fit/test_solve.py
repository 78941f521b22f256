"""The largest that fits, on compilers that are functions of one number."""

from dataclasses import dataclass

import pytest

from research.experiment import from_config
from research.fit.solve import PRECISION, Unknown, largest, unknown
from tests.configs import load_config


@dataclass(frozen=True)
class Held:
    """What `largest` reads of a Fit."""

    total: int
    capacity: int = 1_000_000

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


# Memory as it grows: in a line, with a jump as where a compiler starts to spill, quadratically, in stairs.
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

    (value, fit), (beyond, more) = largest(ask, Unknown(start, step, lambda n: {}))
    assert fit.fits and not more.fits and value < beyond <= value + max(step, value // PRECISION)
    assert len(asked) == len(set(asked)) <= 30  # bisection of 2**30 alone would be 30


def test_a_line_takes_few_compiles():
    asked = []
    largest(lambda n: asked.append(n) or Held(50_000 + 3 * n), Unknown(2048, 128, lambda n: {}))
    assert len(asked) <= 6


def test_nothing_fits_and_everything_fits():
    best, worst = largest(lambda n: Held(2_000_000), Unknown(4096, 128, lambda n: {}))
    assert best is None and worst[0] == 128
    best, worst = largest(lambda n: Held(5), Unknown(100, 1, lambda n: {}, most=4096))
    assert best[0] == 4096 and worst is None


def test_what_is_varied_follows_the_experiment():
    tuned = from_config(load_config("finetune", "model=llama3_8b,method=qlora"))
    assert unknown(tuned, "rank", 1).most == 1024  # keys and values of eight heads of 128
    assert unknown(tuned, "batch", 8).settings(16) == {"data__batch_size": 16}
    trained = from_config(load_config("pretrain", "model=gpt2"))
    assert unknown(trained, "context", 1).most == 1024  # learned positions
    assert unknown(trained, "batch", 8).settings(16) == {"data__batch_size_per_device": 16}
    with pytest.raises(ValueError, match="config.tune.method='full'"):
        unknown(trained, "rank", 1)
