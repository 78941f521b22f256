"""The commands that run cells: run, add, retry; and status."""

import dataclasses
import importlib.util
import inspect
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from research import command
from research.run.workdir import refuse_addresses
from research.sweep.answer import Finding
from research.sweep.cells import Cell
from research.sweep.claims import held
from research.sweep.design import Sweep
from research.sweep.halving import Rungs
from research.sweep.ledger import STATES, Ledger
from research.sweep.plan import Plan, make_plan, merged, read_plan, write_plan
from research.sweep.report import write_report
from research.sweep.workers import Workers

Kind = TypeVar("Kind")


def run_sweep(spelling: str, workdir: str | Path, workers: int = 1) -> list[Finding]:
    """Plans the sweep of a config file, runs what is left of it, and reports; what was found.

        run_sweep("configs/ablations/window.py:smoke", "sweeps/window", workers=2)

    ValueError as of the command; `command.Stop` if the sweep was stopped.
    """
    ledger = open_ledger(str(workdir))
    plan, cells = plan_sweep(ledger, spelling, load_config(spelling))
    write_plan(ledger, plan, cells)
    code = run_cells(ledger, plan, workers)
    if code:
        raise command.Stop(code, "the sweep was stopped; run it again to go on")
    return write_report(ledger)


def load_config(spelling: str) -> ConfigDict:
    """The config that the runs of a sweep's config file share."""
    return load_module(spelling).get_config(spelling.partition(":")[2])


def load_sweep(spelling: str) -> Sweep:
    """The sweep that a config file, with its arguments, defines. ValueError for a file without
    `get_sweep`."""
    return load_design(spelling, "get_sweep", Sweep)


def load_design(spelling: str, name: str, kind: type[Kind]) -> Kind:
    """What the function `name` of a config file gives, which must be of this kind. ValueError for a
    file without it."""
    file, _, arg = spelling.partition(":")
    function = getattr(load_module(spelling), name, None)
    if function is None:
        raise ValueError(
            f"{file} has no {name}(), which says what is compared; see configs/ablations, or "
            "train one run with python -m research.train"
        )
    made = function(arg) if inspect.signature(function).parameters else function()
    if not isinstance(made, kind):
        raise ValueError(f"{name}() of {file} gives a {type(made).__name__} and no {kind.__name__}")
    return made


def load_module(spelling: str) -> ModuleType:
    """The module of a config file, whatever its arguments. ValueError for what is no file."""
    file = spelling.partition(":")[0]
    spec = importlib.util.spec_from_file_location("sweep_config", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise ValueError(f"--config={file} is no file of Python; give one of configs/ablations")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan_sweep(
    ledger: Ledger,
    spelling: str,
    config: ConfigDict,
    changes: Sequence[str] = (),
    changed: str = "refuse",
    more: int = 0,
) -> tuple[Plan, dict[str, Cell]]:
    """The plan of a config file's sweep in a ledger, with what the ledger's own plan has beyond it
    and `more` further seeds; and its cells by key. Nothing is written."""
    sweep = load_sweep(spelling)
    seeds = list(sweep.seeds)
    if ledger.plan_file.exists():
        seeds = list(dict.fromkeys([*read_plan(ledger).seeds, *seeds]))
    seeds += range(max(seeds) + 1, max(seeds) + 1 + more)
    plan, cells = make_plan(spelling, config, changes, sweep, seeds)
    return merged(ledger, plan, cells, changed), cells


def run_cells(ledger: Ledger, plan: Plan, workers: int) -> int:
    """Runs the cells of a plan that have not ended; the exit code."""
    rungs = Rungs(ledger, plan) if plan.halving else None
    crew = Workers(ledger, plan.cells, plan.metrics, workers, _tell, rungs=rungs)
    healed = ledger.heal()
    if healed:
        _tell(healed)
    for key, entry in plan.cells.items():
        if entry["refused"] and not ledger.ended(key):
            crew.finish(key, None, entry["refused"])
    # Python sets signal handlers in the main thread only.
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.getsignal(number) for number in numbers}
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        crew.stop()

    try:
        for number in before:
            signal.signal(number, note)
        crew.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    ledger.heal()
    if received:
        _tell("stopped; the same command goes on")
        return command.INTERRUPTED if received[0] == signal.SIGINT else command.RETRY
    return command.DONE


def run_one(ledger: Ledger, index: int) -> int:
    """Runs the cell of a number, from 0, in the order of the plan, as an index of a SLURM array
    does; the exit code. ValueError for a number beyond the plan, and for a sweep with halving."""
    plan = read_plan(ledger)
    if plan.halving:
        raise ValueError(
            f"{ledger.folder} stops cells early, which is decided while others run; start "
            "python -m research.sweep run on each machine instead of a cell by number"
        )
    keys = list(plan.cells)
    if not 0 <= index < len(keys):
        raise ValueError(f"--index={index}: the sweep has {len(keys)} cells, from 0 on")
    own = plan.cells[keys[index]]
    return run_cells(ledger, dataclasses.replace(plan, entries=[own]), 1)


def status(ledger: Ledger) -> int:
    """Prints how far a sweep is, and what has failed."""
    plan = read_plan(ledger)
    records = ledger.records()
    states = Counter(records[key]["state"] for key in plan.cells if key in records)
    left = [key for key in plan.cells if key not in records]
    working = sum(held(ledger.cell(key)) for key in left)
    counts = [f"{states[state]} {state}" for state in STATES if state != "stopped" or states[state]]
    print(
        f"{len(plan.cells)} cells: {', '.join(counts)}, {working} running, "
        f"{len(left) - working} to run"
    )
    for key in plan.cells:
        record = records.get(key, {})
        if record.get("state") in ("failed", "diverged"):
            words = ", ".join(f"{name}={level}" for name, level in record["levels"].items())
            print(f"  {key} {record['state']}: {words}, seed {record['seed']}: {record['reason']}")
    earlier = len(records.keys() - plan.cells.keys())
    if earlier:
        print(f"{earlier} records are of earlier plans and are in no comparison")
    return command.DONE


def retry(ledger: Ledger, workers: int, states: Sequence[str]) -> int:
    """Runs the cells again that have ended in one of `states`; the exit code."""
    plan = read_plan(ledger)
    for state in states:
        if state not in STATES:
            raise ValueError(f"--states={state} is none of {', '.join(STATES)}")
    again = [
        key
        for key, record in ledger.records().items()
        if key in plan.cells and record["state"] in states
    ]
    for key in again:
        ledger.reopen(key)
    if plan.halving and "stopped" in states:
        Rungs(ledger, plan).let_on(again)
    _tell(f"{len(again)} cells to run again")
    return run_cells(ledger, plan, workers)


def open_ledger(workdir: str) -> Ledger:
    """The ledger of a --workdir. ValueError for an address of a bucket, which must be mounted."""
    refuse_addresses(workdir)
    return Ledger(Path(workdir))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
