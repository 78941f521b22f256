"""The largest that fits: context, batch, rank or layers, by compiling.

Memory grows almost in a straight line with each of them, so the next value to compile is where the
line through what is known meets the capacity, kept inside the bracket of the largest that fits and
the smallest that does not. The answer is one that was compiled and fits; one that is larger by a
two-hundredth, or by the smallest step, was compiled and does not.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from research import command
from research.experiment.config import Experiment
from research.fit.answer import DOES_NOT_FIT, answer
from research.fit.report import GIB, Fit
from research.fit.table import table
from research.fit.targets import Target
from research.parallel.mesh import parse_mesh
from research.run.override import change, flags, set_batch

PRECISION = 200  # the bracket closes to this part of the answer
KERNEL_STEP = 128  # tokens: what attention kernels want a length to be a multiple of
LARGEST = 2**30


@dataclass(frozen=True)
class Variable:
    """What is varied: its value in the experiment (`now`), the step it moves in, the settings that
    give it another value, and the largest it can have."""

    now: int
    step: int
    settings: Callable[[int], dict[str, Any]]
    most: int = LARGEST


def variable(experiment: Experiment, what: str, devices: int) -> Variable:
    """The variable that --solve names. ValueError where the experiment has no such thing."""
    e = experiment
    if what == "context":
        shards = parse_mesh(e.mesh).get("context", 1)
        # Learned positions end with their table; rotary and relative ones do not.
        most = e.model.max_length if e.model.position == "learned" else LARGEST
        # Each device of a split context takes an equal, whole number of kernel tiles.
        step = min(KERNEL_STEP, most) * max(1, shards)
        return Variable(e.data.sequence_length, step, lambda n: {"data__sequence_length": n}, most)
    if what == "batch":
        # A batch is a multiple of its micro-batches, on each device or over all.
        step = e.train.accumulate if not e.data.batch_size else devices * e.train.accumulate
        return Variable(
            e.data.batch_size or e.data.batch_size_per_device, step, lambda n: set_batch(e, n)
        )
    if what == "rank":
        if e.tune.method != "lora":
            raise ValueError(
                "--solve=rank is for adapters of low rank and "
                f"config.tune.method={e.tune.method!r}; set it to 'lora'"
            )
        # Of a matrix [inputs, outputs] no rank is larger than the smaller side.
        # The narrowest matrices of a layer are those of keys and values.
        widths = e.model.d_model, e.model.kv_heads * e.model.head_size
        return Variable(e.lora.rank, 1, lambda n: {"lora__rank": n}, min(widths))
    return Variable(e.model.layers, 1, lambda n: {"model__layers": n})


def solve(
    experiment: Experiment, target: Target, what: str, *, print_json: bool, **terms: Any
) -> int:
    """Compiles until the answer is known and prints it; the exit code. `terms` are those of
    `answer`.

    ValueError for a target without a known capacity and for what cannot be varied.
    """
    sought = variable(experiment, what, target.count)

    def _ask(value: int) -> Fit:
        fit = answer(change(experiment, **sought.settings(value)), target.name, **terms)
        if fit.capacity is None:
            raise ValueError(
                f"target {target.name!r} has no capacity of its own; give --capacity_gib"
            )
        verdict = "fits" if fit.fits else "does not fit"
        print(f"{what} {value:,}: {fit.total / GIB:.2f} GiB, {verdict}", file=sys.stderr)
        return fit

    best, least_too_large = largest(_ask, sought)
    # The answer holds for these sizes alone, so they are said with it.
    fixed = _fixed(experiment, target, what)
    if best is None:
        value, fit = least_too_large
        size = f"{fit.total / GIB:.2f} GiB of {fit.capacity / GIB:.2f}"
        line = f"{target.name}: even {what} {value:,} does not fit{_words(fixed)}: {size}"
        print(json.dumps({what: 0, **fixed, **fit.to_json()}) if print_json else line)
        return DOES_NOT_FIT
    value, fit = best
    if print_json:
        print(json.dumps({what: value, **fixed, **fit.to_json()}))
    else:
        spelt = flags(sought.settings(value))
        print(f"{what} {value:,} is the largest that fits{_words(fixed)}: {spelt}")
        print(table(fit))
    return command.DONE


def _fixed(experiment: Experiment, target: Target, what: str) -> dict[str, int]:
    """What else of a batch decides memory and stays as the experiment has it: rows over all
    devices ("batch") and tokens of each ("context")."""
    data = experiment.data
    sizes = {"batch": data.global_batch(target.count), "context": data.sequence_length}
    return {name: size for name, size in sizes.items() if name != what}


def _words(fixed: dict[str, int]) -> str:
    """ " with a batch of 8", or " with a batch of 8 x 4,096 tokens"."""
    batch, length = fixed.get("batch"), fixed.get("context")
    if batch is None:
        return f" with rows of {length:,} tokens"
    return f" with a batch of {batch:,}" + (f" x {length:,} tokens" if length else "")


def largest(
    ask: Callable[[int], Fit], sought: Variable
) -> tuple[tuple[int, Fit] | None, tuple[int, Fit] | None]:
    """((the largest value that fits, its Fit), (the smallest known that does not, its Fit)); None
    where no compiled value fits, or all do."""
    step, most = sought.step, sought.most // sought.step * sought.step
    # The search starts at the recipe's own value, rounded down to a step.
    value = min(most, max(step, sought.now // step * step))
    known: dict[int, Fit] = {}
    best = worst = None
    while True:
        # Every value is compiled once at most: the bracket moves strictly inward.
        known[value] = ask(value)
        if known[value].fits:
            best = value
        else:
            worst = value
        # Nothing larger can be asked for, or nothing smaller.
        if best == most or worst == step:
            break
        if best is not None and worst is not None and worst - best <= max(step, best // PRECISION):
            break
        value = _next(known, best, worst, sought.step, most)
    return tuple(None if end is None else (end, known[end]) for end in (best, worst))


def _next(known: dict[int, Fit], best: int | None, worst: int | None, step: int, most: int) -> int:
    """The next value to compile: where the line through the two values nearest the capacity meets
    it.

    Every fourth time it is the middle of the bracket, in case memory is no line. Inside the bracket
    it keeps half the precision from either end, so that a good guess is soon enclosed. While
    nothing too large is known it at least doubles.
    """
    # Both ends are exclusive: `low` fits and `high` does not, known or by definition.
    low, high = best or 0, worst or most + step
    nearest = sorted(known, key=lambda value: abs(known[value].total - known[value].capacity))[:2]
    rise = 0.0
    if len(nearest) == 2:
        a, b = nearest
        rise = (known[b].total - known[a].total) / (b - a)
    # A secant step of root finding on memory minus capacity.
    guess = a + (known[a].capacity - known[a].total) / rise if rise > 0 else 0
    if worst is None:
        # A line through two small values may point far too high, hence the limit from above.
        guess = min(max(guess, 2 * low), 128 * low)
    elif rise <= 0 or len(known) % 4 == 0:
        guess = (low + high) // 2
    # A guess at an end of the bracket would close it from one side only, by tiny steps.
    margin = max(step, int(low / PRECISION / 2) // step * step)
    guess = min(max(int(guess) // step * step, low + margin), high - margin)
    return min(max(guess, low + step), high - step)
