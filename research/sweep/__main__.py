r"""Runs a sweep and answers it:
python -m research.sweep run|status|report|retry|add|query|search|scaling|plan|cell

    python -m research.sweep run --config=configs/ablations/lora_rank.py --workdir=sweeps/rank \
        --workers=2
    python -m research.sweep add --config=... --workdir=sweeps/rank --seeds=4    # four more seeds
    python -m research.sweep report --workdir=sweeps/rank
    python -m research.sweep query "method=='qlora' and rank>=8" --by=data --workdir=sweeps

A config file of a sweep has `get_config(arg)`, what all runs share, and `get_sweep(arg)`, which
factors are compared, see `research.sweep.design`. `run` ends with the report; a sweep that was
stopped goes on, on any number of machines at once that share the folder. `retry` runs failed cells
again, with --states=failed,diverged also those that diverged, and with --states=stopped those that
successive halving stopped. `run --dry_run` runs nothing and prints each cell with its command, its
memory and the least that it takes in time and, with --price_per_hour, in money: on this machine,
its accelerator where it has one, or compiled for hardware such as --target=h100:8. `search` has
Optuna propose the cells of a config file with `get_search(arg)`, see `research.sweep.search`.
`scaling` runs a ladder of sizes, fits L(N, D) to all but the largest and predicts that one, see
`research.sweep.scaling_law`. `plan` writes the plan and runs nothing, and `cell --index=N` runs one
cell of it; launch/slurm_sweep.sh makes an array of these.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from research import command

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARGUMENTS; --config.FIELD=VALUE overrides in every cell"
)
WORKDIR = flags.DEFINE_string("workdir", None, "the folder of the sweep; query: of several")
WORKERS = flags.DEFINE_integer("workers", 1, "runs at a time on this machine", lower_bound=1)
SEEDS = flags.DEFINE_integer("seeds", 0, "add: so many more seeds", lower_bound=0)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "run, add: only print the cells, what they take and their commands"
)
TARGET = flags.DEFINE_string(
    "target", "", "dry_run: what the cells would run on, as research.fit names it, such as h100:1"
)
PRICE = flags.DEFINE_float(
    "price_per_hour",
    None,
    "dry_run: what a chip or card of the target costs an hour, or this machine",
    lower_bound=0,
)
CHANGED = flags.DEFINE_enum(
    "changed",
    "refuse",
    ["refuse", "keep", "rerun"],
    "run, add: what to do where config or code differ from those of the folder's cells",
)
BY = flags.DEFINE_string("by", "", "query: the field whose values are a row each")
METRIC = flags.DEFINE_string("metric", "eval/loss", "query: the metric of the rows")
INDEX = flags.DEFINE_integer("index", None, "cell: the number of the cell in the plan, from 0")
STATES = flags.DEFINE_list("states", ["failed"], "retry: the states of the cells to run again")


def main(arguments: list[str]) -> int:
    """Does what the first argument names; the exit code."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name not in COMMANDS:
        given = f"{name!r} is unknown" if name else "say what to do"
        raise ValueError(f"{given}: python -m research.sweep {'|'.join(COMMANDS)} --workdir=FOLDER")
    if len(rest) > (name == "query"):
        raise ValueError(f"unexpected argument {rest[-1]!r} after {name}")
    if not WORKDIR.value:
        raise ValueError("give --workdir=FOLDER, such as --workdir=sweeps/lora_rank")
    if DRY_RUN.value and name not in ("run", "add", "plan", "scaling"):
        raise ValueError(f"{name} has no --dry_run; run, add and scaling have one")
    for flag in (TARGET, PRICE):
        if flag.value not in ("", None) and not DRY_RUN.value:
            raise ValueError(f"--{flag.name} is for --dry_run; give both or neither")
    _stay_on_cpu()
    return COMMANDS[name](*rest)


def _run() -> int:
    """Plans a sweep, or what `add` asks for beyond it, runs what is left, and reports."""
    return _planned(run=True)


def _plan() -> int:
    """Plans a sweep and prints how many cells it has."""
    return _planned(run=False)


def _planned(run: bool) -> int:
    from research.sweep import running
    from research.sweep.plan import write_plan

    config = command.read_config(CONFIG)
    ledger = running.open_ledger(WORKDIR.value)
    spelling = flags.FLAGS[CONFIG.name].config_filename
    changes = [word for word in sys.argv if word.startswith("--config.")]
    plan, cells = running.plan_sweep(ledger, spelling, config, changes, CHANGED.value, SEEDS.value)
    if DRY_RUN.value:
        from research.sweep.forecast import Forecast, dry_run

        dry_run(ledger, plan, cells, Forecast(TARGET.value, PRICE.value))
        return command.DONE
    write_plan(ledger, plan, cells)
    if not run:
        print(f"{len(plan.cells)} cells of {len(plan.entries)} runs")
        return command.DONE
    return running.run_cells(ledger, plan, WORKERS.value) or _report()


def _cell() -> int:
    from research.sweep import running

    if INDEX.value is None:
        raise ValueError("give --index=N, the number of a cell in the plan, from 0")
    return running.run_one(running.open_ledger(WORKDIR.value), INDEX.value)


def _retry() -> int:
    from research.sweep import running

    ledger = running.open_ledger(WORKDIR.value)
    return running.retry(ledger, WORKERS.value, STATES.value) or _report()


def _status() -> int:
    from research.sweep import running

    return running.status(running.open_ledger(WORKDIR.value))


def _report() -> int:
    """Writes the report and prints the answer."""
    from research.sweep.report import summary, write_report
    from research.sweep.running import open_ledger

    ledger = open_ledger(WORKDIR.value)
    healed = ledger.heal()
    if healed:
        print(healed, file=sys.stderr)
    print("\n".join(summary(ledger, write_report(ledger))))
    print(f"{ledger.folder / 'report.md'}")
    return command.DONE


def _query(condition: str = "") -> int:
    """Prints the runs of several sweeps that a condition chooses."""
    from research.sweep.query import answer

    print(answer(Path(WORKDIR.value), condition, BY.value, METRIC.value))
    return command.DONE


def _search() -> int:
    """Searches, and reports."""
    from research.sweep import running
    from research.sweep.search import run_search

    config, spelling = command.read_config(CONFIG), flags.FLAGS[CONFIG.name].config_filename
    changes = [word for word in sys.argv if word.startswith("--config.")]
    ledger = running.open_ledger(WORKDIR.value)
    return run_search(ledger, spelling, config, changes, WORKERS.value) or _report()


def _scaling() -> int:
    """Runs a ladder of sizes and fits the scaling law."""
    from research.sweep import running
    from research.sweep.scaling import sentences, write_law

    code = _run()
    if code or DRY_RUN.value:
        return code
    print("\n".join(sentences(write_law(running.open_ledger(WORKDIR.value)))))
    return _report()  # again, with the law


COMMANDS = {
    "run": _run, "status": _status, "report": _report, "query": _query, "retry": _retry,
    "add": _run, "search": _search, "scaling": _scaling, "plan": _plan, "cell": _cell,
}  # fmt: skip


def _stay_on_cpu() -> None:
    """Keeps this process, which trains nothing, off the accelerators of the cells."""
    import jax

    jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
    # Usage lines then name the module and not the path of this file.
    sys.argv[0] = "research.sweep"
    command.run(main)
