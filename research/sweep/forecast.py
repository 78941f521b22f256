"""What the cells of a plan take, before any of them is run: memory, least time and least cost."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from research.command import Stop
from research.devices.nodes import runs_on_cpu
from research.devices.probe import jax_devices
from research.devices.table import peak_flops
from research.experiment.config import Experiment, from_json
from research.files import read_json
from research.fit.answer import answer
from research.fit.at_hand import predict
from research.fit.table import verdict
from research.fit.targets import parse_target
from research.fit.weigh import abstract_program
from research.parallel.mesh import parse_mesh
from research.run.least_time import cpu_rate, least_seconds
from research.sweep.cells import Cell
from research.sweep.ledger import Ledger
from research.sweep.plan import Plan
from research.training.progress import clock_time


@dataclass(frozen=True)
class Need:
    """What a cell takes. `seconds` is a lower bound, None where it is not known; `memory` is in
    words, and says so where the cell does not fit or cannot be built."""

    seconds: float | None
    memory: str


@dataclass(frozen=True)
class Card:
    """What `research.fit.at_hand` asks of a device: one that another process has found."""

    platform: str
    device_kind: str
    memory: int | None
    process_index: int = 0

    def memory_stats(self) -> dict[str, int]:
        """Its memory as JAX has it, all of which is free: the process that asked is gone."""
        return {} if self.memory is None else {"bytes_limit": self.memory}


@dataclass
class Forecast:
    """What cells take on a target, as `research.fit` spells it ("h100:8"), or without one on the
    accelerators of this machine, or its CPU.

        Forecast("h100:8", price_per_hour=2.5).need(experiment.to_json())

    On a target a step is compiled, and its least time is that of the roofline; on this machine
    memory is estimated, and the least time that of the products at the rate that its cores
    multiply at, or at the published one of its accelerators. `price_per_hour` is that of one chip
    or card, or of this machine, in a unit of the user's. ValueError for an unknown target, and for
    one whose compiler is not installed.
    """

    target: str = ""
    price_per_hour: float | None = None
    _known: dict[str, Need] = field(default_factory=dict)
    _cards: list[Card] = field(default_factory=list)

    def __post_init__(self):
        target = parse_target(self.target or "cpu")
        target.refuse_without_compiler()
        self.devices = target.count
        self.remark = ""
        if not self.target and not runs_on_cpu():
            self._look()

    def _look(self) -> None:
        """Asks which accelerators the cells will find here, which this process must not hold."""
        # Cards may be at work: to ask after their memory is not to take it.
        asking = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        found, failure = jax_devices(environment=asking)
        if found and found["platform"] != "cpu":
            card = Card(found["platform"], found["kind"], found["memory"])
            self._cards = [card] * found["count"]
            return
        self.remark = (
            "WARNING: JAX does not find the accelerator of this machine "
            f"({failure or 'only its CPU'}), so this is told of its CPU; "
            "python -m research.doctor says what is wrong, --target=NAME asks for other hardware"
        )

    @property
    def place(self) -> str:
        """What the cells would run on, in words."""
        card = f", {self._cards[0].device_kind}" if self._cards else ""
        return self.target or f"this machine{card}"

    def need(self, config: Mapping[str, Any]) -> Need:
        """What a run of a resolved config takes. Configs that differ in their seed alone share
        their answer."""
        alike = {**config, "train": {**config["train"], "seed": 0}}
        key = json.dumps(alike, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._asked(from_json(alike))
        return self._known[key]

    def cost(self, seconds: float) -> str:
        """The least cost of so many seconds on the target, in words; "" without a price."""
        if self.price_per_hour is None:
            return ""
        least = self.price_per_hour * self.devices * seconds / 3600
        return f", cost at least {least:,.2f}" if least >= 0.01 else f", cost at least {least:.2g}"

    def _asked(self, experiment: Experiment) -> Need:
        # Epochs set the number of steps only when the data are read.
        steps = None if experiment.train.epochs else experiment.train.steps
        if not self.target:
            line = predict(experiment, self._own(experiment) or None).line
            return Need(self._products(experiment, steps), line)
        try:
            fit = answer(experiment, self.target)
        except (ValueError, Stop) as error:
            return Need(None, f"WARNING: no estimate: {str(error).splitlines()[0]}")
        memory = ("" if fit.fits else "WARNING: ") + verdict(fit)
        if fit.roofline.seconds is None:  # a CPU, of which no peak is published
            return Need(self._products(experiment, steps), memory)
        return Need(steps and steps * fit.roofline.seconds, memory)

    def _own(self, experiment: Experiment) -> list[Card]:
        """The accelerators of this machine that a run takes: one where it has no mesh."""
        return self._cards if parse_mesh(experiment.mesh) else self._cards[:1]

    def _products(self, experiment: Experiment, steps: int | None) -> float | None:
        """Seconds that the products of a run take on this machine at least; None where its rate is
        not known."""
        cards = self._own(experiment)
        try:
            program = abstract_program(experiment, len(cards) or self.devices)
        except ValueError:  # a mesh that so many devices do not make: the run itself says so
            return None
        if steps is None:
            return None
        if not cards:
            return least_seconds(program, steps, cpu_rate())
        peak = peak_flops(cards[0].device_kind, experiment.precision.compute)
        return peak and least_seconds(program, steps, peak * program.mesh.size)


def dry_run(ledger: Ledger, plan: Plan, cells: Mapping[str, Cell], forecast: Forecast) -> None:
    """Prints the cells of a plan, what each takes and its command, and what is left to run takes
    altogether; nothing is written."""
    left, seconds, flops, unknown = 0, 0.0, 0.0, 0
    if forecast.remark:
        print(forecast.remark)
    for key, entry in plan.cells.items():
        words = ", ".join(f"{name}={level}" for name, level in entry["levels"].items())
        state = (ledger.record(key) or {}).get("state", "to run")
        print(f"{key} {state}: {words}, seed {entry['seed']}")
        if entry["refused"]:
            print(f"  will fail: {entry['refused']}")
            continue
        # A cell of an earlier plan has its config in the ledger alone.
        own = cells[key].config if key in cells else read_json(ledger.cell(key) / "config.json")
        need = forecast.need(own)
        print("  " + _in_words(entry["flops"], need, forecast))
        print("  " + train_command(ledger, plan, key))
        if state == "to run":
            left, flops = left + 1, flops + (entry["flops"] or 0)
            seconds, unknown = seconds + (need.seconds or 0), unknown + (need.seconds is None)
    total = f"{flops:.3g} FLOPs, at least {clock_time(seconds)} one after another on "
    print(f"{len(plan.cells)} cells of {len(plan.entries)} runs, {left} to run: ", end="")
    print(total + forecast.place + forecast.cost(seconds))
    if unknown:
        print(f"not in these times: {unknown} cells, of which no time is known")
    if plan.halving:
        print("successive halving ends most of them early, so that all may take less")


def _in_words(flops: float | None, need: Need, forecast: Forecast) -> str:
    parts = [f"{flops:.3g} FLOPs"] if flops else []
    if need.seconds is not None:
        parts.append(f"at least {clock_time(need.seconds)}{forecast.cost(need.seconds)}")
    return "; ".join([*parts, *filter(None, [need.memory])])


def train_command(ledger: Ledger, plan: Plan, key: str) -> str:
    """The command that runs a cell alone, in its own folder."""
    settings = plan.cells[key]["settings"]
    changes = [f"--config.{path}={_spelt(value)}" for path, value in settings.items()]
    words = [f"--config={plan.config}", *plan.changes, *changes]
    folder = f"--workdir={ledger.cell(key) / 'run'}"
    return shlex.join(["python", "-m", "research.train", *words, folder])


def _spelt(value: Any) -> str:
    if isinstance(value, list | tuple):
        return repr(tuple(value))
    return "" if value is None else f"{value}"
