"""The feed that samples texts from the model that is trained."""

import base64
import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import jax
import numpy as np

from research.data.loader import Batch
from research.objectives.objective import Objective
from research.posttrain.rollouts import Rollouts, Window
from research.run.feed import Feed
from research.training.state import TrainState


@dataclass
class Sampling:
    """What was sampled at once: the windows of its texts, values for the log, and pairs of a prompt
    and a text with its reward to look at. `version` is the number of steps that the weights which
    wrote it had done."""

    windows: list[Window]
    values: dict[str, float]
    shown: list[tuple[str, str]]
    version: int = 0


@dataclass
class RolloutFeed(Feed):
    """Batches of `batch_size` texts over all processes, which `sample(state, number)` writes with
    the weights of a step: for `updates` steps at once, the number counting these samplings from 0.
    Every process has all texts and saves all; of a batch it gives its `part`, (index, count), see
    `research.parallel.mesh.row_part`.

    With a `staleness` of k sampling n is written by the weights that were there before the steps
    of sampling n - k, so that a step's texts are k samplings old; the first k + 1 samplings are all
    written by the first weights. Everything is decided by the state and the number, and samplings
    that are written and not used yet are in `state()`: a resumed run trains on the same texts.
    Each keeps the version of its weights and its own log-probabilities, and none is used that is
    older than `staleness` allows.
    """

    sample: Callable[[TrainState, int], Sampling]
    objective: Objective
    batch_size: int
    updates: int = 1
    staleness: int = 0
    part: tuple[int, int] = (0, 1)
    _step: int = field(default=0, init=False)
    _written: dict[int, Sampling] = field(default_factory=dict, init=False, repr=False)
    _last: Sampling | None = field(default=None, init=False, repr=False)
    _seconds: float = field(default=0.0, init=False)
    _since: float = field(default=0.0, init=False)

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes on from `step` with the samplings that were saved."""
        self._step, self._last = step, None
        # A run that was saved without versions goes on with the staleness that it had.
        written = {int(n): one for n, one in state.get("written", {}).items()}
        saved = {n: _read({"version": self._oldest(n)} | one) for n, one in written.items()}
        self._written = {n: one for n, one in saved.items() if one.version >= self._oldest(n)}
        # Only where the run goes on with a lower staleness than it had.
        if stale := len(saved) - len(self._written):
            logging.warning(
                "%d saved samplings are older than objective.staleness=%d allows; written anew",
                stale,
                self.staleness,
            )
        self._seconds, self._since = 0.0, time.monotonic()

    def offer(self, state: TrainState) -> None:
        """Samples what the next batch lacks, with the weights of `state`."""
        now = self._step // self.updates
        for number in range(now, now + self.staleness + 1):
            if number not in self._written:
                # The step before may still run; its time is not that of the sampling.
                jax.block_until_ready(state.trainable)
                start = time.monotonic()
                self._written[number] = replace(self.sample(state, number), version=self._step)
                self._seconds += time.monotonic() - start

    def __next__(self) -> tuple[int, Batch]:
        number, part = divmod(self._step, self.updates)
        if number not in self._written:
            raise RuntimeError("a feed of rollouts needs a state; call offer(state) before next")
        self._last = self._written[number]
        windows = self._last.windows[part * self.batch_size : (part + 1) * self.batch_size]
        self._step += 1
        if part + 1 == self.updates:
            del self._written[number]
        return self._step - 1, rows_of(self.objective, windows, self.part)

    def values(self) -> dict[str, float]:
        """The values of the last batch's sampling; "age", the steps between the weights that wrote
        its texts and those that they train; and "rollout_share", the share of the time since the
        last call that sampling took."""
        if self._last is None:
            return {}
        now = time.monotonic()
        share = self._seconds / max(now - self._since, 1e-9)
        self._seconds, self._since = 0.0, now
        age = float(self._step - 1 - self._last.version)
        return self._last.values | {"age": age, "rollout_share": share}

    def samples(self) -> list[tuple[str, str]]:
        """Texts of the last batch's sampling, with their rewards."""
        return [] if self._last is None else self._last.shown

    def state(self) -> dict[str, Any]:
        """The samplings that are written and not used up; {} where there is none."""
        written = {str(number): _spell(one) for number, one in self._written.items()}
        return {"written": written} if written else {}

    def close(self) -> None:
        """Does nothing: this feed has no threads."""

    def _oldest(self, number: int) -> int:
        """The least version of the weights that may write sampling `number`."""
        return max(0, (number - self.staleness) * self.updates)


def rows_of(objective: Objective, windows: list[Window], part: tuple[int, int]) -> Batch:
    """The rows of a batch, one a window, that are of `part`, (index, count)."""
    index, count = part
    first, end = (len(windows) * at // count for at in (index, index + 1))
    rows = [objective.example(window, np.random.default_rng(0)) for window in windows[first:end]]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def sampling_of(
    rollouts: Rollouts, decode: Callable[[list[int]], str], compared: bool = True
) -> Sampling:
    """The sampling of some rollouts; shown are the best and the worst text of the first prompt
    whose texts differ in reward, or else the first text, each with its reward, and where texts are
    `compared` with each other with its advantage."""
    shown = rollouts.texts[:1]
    for _, group in groupby(rollouts.texts, key=lambda text: text.prompt):
        rewarded = (text for text in group if not math.isnan(text.reward))
        by_reward = sorted(rewarded, key=lambda text: text.reward)
        if by_reward and by_reward[0].reward < by_reward[-1].reward:
            shown = [by_reward[-1], by_reward[0]]
            break
    cards = []
    for text in shown:
        said = f"reward {text.reward:g}"
        said += f", advantage {text.advantage:.3g}" if compared else ""
        cards.append((decode(text.prompt), f"{text.written.text}\n[{said}]"))
    return Sampling(rollouts.windows, rollouts.values, cards)


def _spell(sampling: Sampling) -> dict[str, Any]:
    """A sampling as JSON: its arrays as a compressed file in base64, which keeps their bits."""
    stacked = {name: np.stack([w[name] for w in sampling.windows]) for name in sampling.windows[0]}
    file = io.BytesIO()
    np.savez_compressed(file, **stacked)
    windows = base64.b64encode(file.getvalue()).decode()
    beside = {"values": sampling.values, "shown": sampling.shown, "version": sampling.version}
    return {"windows": windows, **beside}


def _read(spelt: Mapping[str, Any]) -> Sampling:
    """The inverse of `_spell`."""
    with np.load(io.BytesIO(base64.b64decode(spelt["windows"])), allow_pickle=False) as file:
        stacked = {name: file[name] for name in file.files}
    count = len(next(iter(stacked.values())))
    windows = [{name: rows[i] for name, rows in stacked.items()} for i in range(count)]
    shown = [tuple(pair) for pair in spelt["shown"]]
    return Sampling(windows, dict(spelt["values"]), shown, spelt["version"])
