"""The plan of a sweep, `sweep.json`: what is compared with what, and the cell of each combination
and seed."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from research.experiment.config import differences
from research.files import read_json, write_json
from research.sweep.cells import Cell, Resolver, refuse_rungs
from research.sweep.code import package_tree
from research.sweep.design import Sweep
from research.sweep.ledger import Ledger

CHANGED = ("refuse", "keep", "rerun")


@dataclass(frozen=True)
class Plan:
    """What a sweep is to run.

    config    the config file and its arguments, as --config names them
    changes   overrides of single fields, as flags
    code      `research.sweep.code.package_tree`
    metrics   what is better of each metric, by name
    factors   by factor, its levels, that of the baseline first
    entries   of each combination and seed: `levels`, `seed`, `cell`, `inputs`, `settings`, `flops`,
              `prints` and `refused`, see `research.sweep.cells.Cell`
    halving   `rungs` and `eta` of successive halving, {} without
    """

    config: str
    changes: Sequence[str]
    code: str
    metrics: Mapping[str, str]
    factors: Mapping[str, Sequence[str]]
    entries: Sequence[Mapping[str, Any]]
    halving: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """All seeds, in the order in which they run."""
        return list(dict.fromkeys(entry["seed"] for entry in self.entries))

    @property
    def baseline(self) -> dict[str, str]:
        """The level of every factor in the baseline."""
        return {name: levels[0] for name, levels in self.factors.items()}

    @property
    def cells(self) -> dict[str, Mapping[str, Any]]:
        """The entries by cell; of combinations with one config the first."""
        found: dict[str, Mapping[str, Any]] = {}
        for entry in self.entries:
            found.setdefault(entry["cell"], entry)
        return found


def make_plan(
    spelling: str, config: ConfigDict, changes: Sequence[str], sweep: Sweep, seeds: Iterable[int]
) -> tuple[Plan, dict[str, Cell]]:
    """(the plan of a sweep over `seeds`, its cells by key).

    One seed after another, so that a sweep that is stopped has complete comparisons. ValueError for
    a factor that sets what the config does not have, and for a baseline that no run could have.
    """
    code = package_tree()
    resolver = Resolver(config, sweep, code)
    cells = [resolver.cell(point, seed) for seed in seeds for point in sweep.points]
    base = sweep.baseline_levels
    for cell in cells:
        if cell.refused and cell.levels == base:
            raise ValueError(f"the baseline cannot be run: {cell.refused}")
        if sweep.halving and not cell.refused:
            refuse_rungs(cell.config, sweep.halving.rungs)
    factors = {
        name: list(dict.fromkeys([base[name], *levels]))
        for name, levels in sweep.design.factors.items()
    }
    entries = [_entry(cell) for cell in cells]
    halving = dataclasses.asdict(sweep.halving) if sweep.halving else {}
    plan = Plan(spelling, list(changes), code, dict(sweep.metrics), factors, entries, halving)
    return plan, {cell.key: cell for cell in cells}


def _entry(cell: Cell) -> dict[str, Any]:
    entry = {"cell": cell.key, "levels": dict(cell.levels)}
    for name in ("seed", "settings", "inputs", "prints", "flops", "refused"):
        entry[name] = getattr(cell, name)
    return entry


def read_plan(ledger: Ledger) -> Plan:
    """The plan of a ledger. ValueError for a folder without one."""
    if not ledger.plan_file.exists():
        raise ValueError(
            f"{ledger.folder} holds no sweep; start one with "
            "python -m research.sweep run --config=FILE --workdir=FOLDER"
        )
    values = read_json(ledger.plan_file)
    try:
        return Plan(**values)
    except TypeError:
        raise ValueError(
            f"{ledger.plan_file} is of another version; take the code that wrote it"
        ) from None


def write_plan(ledger: Ledger, plan: Plan, cells: Mapping[str, Cell]) -> None:
    """Writes the plan and the config of each cell that has none. ValueError for a ledger whose
    folder cannot be written."""
    ledger.make()
    for key, cell in cells.items():
        folder = ledger.cell(key)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", cell.config)
    write_json(ledger.plan_file, dataclasses.asdict(plan))


def merged(ledger: Ledger, new: Plan, cells: Mapping[str, Cell], changed: str) -> Plan:
    """The new plan, with what the ledger's has beyond it: its combinations and seeds.

    Where both have a combination and seed whose cells differ, config or code has changed in
    between. `changed` says what then happens: "refuse" is a ValueError that names the fields,
    "keep" goes on with the old cells where the code alone differs, "rerun" takes the new ones. No
    record is ever lost. ValueError for a sweep of other factors.
    """
    if not ledger.plan_file.exists():
        return new
    old = read_plan(ledger)
    if list(old.factors) != list(new.factors) or old.baseline != new.baseline:
        raise ValueError(
            f"{ledger.folder} holds the sweep of {old.config} with the baseline "
            f"{_words(old.baseline)}, and {new.config} has {_words(new.baseline)}; take another "
            "--workdir"
        )
    before = {_place(entry): entry for entry in old.entries}
    entries = [
        _settled(ledger, before.get(_place(one)), one, cells, changed) for one in new.entries
    ]
    there = set(map(_place, entries))
    entries += [entry for entry in old.entries if _place(entry) not in there]
    factors = {
        name: list(dict.fromkeys([*levels, *old.factors[name]]))
        for name, levels in new.factors.items()
    }
    return dataclasses.replace(new, entries=entries, factors=factors)


def _settled(
    ledger: Ledger,
    old: Mapping[str, Any] | None,
    new: Mapping[str, Any],
    cells: Mapping[str, Cell],
    changed: str,
) -> Mapping[str, Any]:
    """The entry to go on with."""
    if old is None or old["cell"] == new["cell"] or changed == "rerun":
        return new
    only_code = old["inputs"] == new["inputs"]
    if only_code and changed == "keep":
        return old
    if only_code:
        what = (
            f"research/ has changed since ({old['prints']['code'][:10]} -> "
            f"{new['prints']['code'][:10]})"
        )
        remedy = "--changed=keep goes on with what has ended, --changed=rerun runs all again"
    else:
        before = read_json(ledger.cell(old["cell"]) / "config.json")
        lines = list(differences(before, cells[new["cell"]].config).values())
        what = "; ".join(lines[:3] or ["data or tokenizer have changed"])
        remedy = "--changed=rerun runs those cells again, beside the old ones"
    raise ValueError(
        f"{ledger.folder} holds this sweep with other cells: {what}; take another --workdir, or "
        f"{remedy}"
    )


def _place(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return (entry["seed"], *sorted(entry["levels"].items()))


def _words(levels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={level}" for name, level in levels.items())
