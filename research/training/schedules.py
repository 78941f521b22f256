"""Learning rate schedules: a linear warm-up from 0, then one of five shapes."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]

SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt", "wsd")
DECAYING = ("cosine", "linear", "wsd")


def make_schedule(
    name: str,
    peak: float,
    total_steps: int,
    warmup_steps: int | None = None,
    decay_steps: int | None = None,
    min_ratio: float | None = None,
) -> Schedule:
    """Learning rate by step, counted from 0: 0 at step 0, `peak` at `warmup_steps`.

    constant      `peak` from there on
    cosine        half a cosine to `min_ratio * peak` in `decay_steps` (arXiv:1608.03983, without
                  restarts)
    linear        a straight line to `min_ratio * peak` in `decay_steps`
    inverse_sqrt  peak * sqrt(warmup_steps / step) (arXiv:1706.03762, section 5.3)
    wsd           `peak` until `decay_steps` before the end, then a line to `min_ratio * peak`
                  (arXiv:2405.18392)

    Lengths left None follow from `total_steps`: a twentieth of it for the warm-up, at most 2000
    steps; for the decay all the rest, a fifth of `total_steps` with wsd. `min_ratio` left None is
    0.1 with cosine, as GPT-3 and LLaMA have it, and 0 else. ValueError for a warm-up and
    a decay that do not fit into `total_steps`.
    """
    if name not in SCHEDULES:
        raise ValueError(f"optimizer.schedule={name!r}; choose one of {', '.join(SCHEDULES)}")
    # 2000 steps as in LLaMA (arXiv:2302.13971, section 2.3), a twentieth of shorter runs.
    warmup = min(2000, total_steps // 20) if warmup_steps is None else warmup_steps
    if name == "inverse_sqrt":
        # At least 1: without a warm-up 1 / sqrt(step) would begin at infinity.
        start = max(1, warmup)
        # The joined schedule also asks for steps before the start, whose values it does not use.
        return _after_warmup(
            lambda step: peak * jnp.sqrt(start / jnp.maximum(step + start, 1)), peak, warmup
        )
    if name == "constant":
        # As a function of the step's shape: schedules are also evaluated on arrays of steps.
        return _after_warmup(
            lambda step: jnp.full(jnp.shape(step), peak, jnp.float32), peak, warmup
        )
    return _decaying(name, peak, total_steps, warmup, decay_steps, min_ratio)


def warmup_note(total_steps: int, warmup_steps: int | None) -> list[str]:
    """A line for a run that ends within its warm-up and so never trains at its learning rate; else
    []. Schedules without decay allow that: a trial of a few steps keeps the rates of the long run.
    """
    if warmup_steps is None or warmup_steps < total_steps:
        return []
    return [
        f"optimizer.warmup_steps={warmup_steps} is not over within the {total_steps} steps of the "
        f"run, whose last learning rate is {(total_steps - 1) / warmup_steps:.0%} of "
        "optimizer.learning_rate; leave warmup_steps out to have it follow train.steps"
    ]


def _decaying(
    name: str,
    peak: float,
    total_steps: int,
    warmup: int,
    decay_steps: int | None,
    min_ratio: float | None,
) -> Schedule:
    """One of `DECAYING`, see `make_schedule`."""
    rest = total_steps - warmup
    # With wsd the decay is the last fifth; arXiv:2405.18392 finds 10 to 20% to be enough.
    default = min(rest, math.ceil(total_steps / 5)) if name == "wsd" else rest
    decay = default if decay_steps is None else decay_steps
    if not 0 < decay <= rest:
        # Only what was set: a length that follows from the others is no setting to change.
        lengths = {"warmup_steps": warmup, "decay_steps": decay_steps}
        got = " and ".join(f"optimizer.{k}={n}" for k, n in lengths.items() if n is not None)
        raise ValueError(
            f"{got} do not fit into train.steps={total_steps}, which holds the warm-up and a decay "
            "of at least 1 step; set lower ones, or leave them out to have them follow train.steps"
        )
    usual = 0.1 if name == "cosine" else 0.0
    ratio = usual if min_ratio is None else min_ratio
    if name == "cosine":
        # peak * ((1 - ratio) * (1 + cos(pi t / decay)) / 2 + ratio), constant after `decay`
        # steps.
        return _after_warmup(optax.cosine_decay_schedule(peak, decay, alpha=ratio), peak, warmup)
    # Steps count from the end of the warm-up here, and wsd's decay from the end of the run.
    line = optax.linear_schedule(
        peak, peak * ratio, decay, transition_begin=rest - decay if name == "wsd" else 0
    )
    return _after_warmup(line, peak, warmup)


def _after_warmup(schedule: Schedule, peak: float, warmup: int) -> Schedule:
    """Warm-up for `warmup` steps, then `schedule`, which counts from the end of it."""
    if warmup == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])
