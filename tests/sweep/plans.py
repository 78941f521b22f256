"""Plans and records without runs, for tests of what reads them."""

from collections.abc import Callable, Mapping, Sequence

from research.files import write_json
from research.sweep.ledger import Ledger
from research.sweep.plan import Plan

Value = Callable[[Mapping[str, str], int], float | None]


def plan(factors: Mapping[str, Sequence[str]], seeds: int, points=None, metrics=None) -> Plan:
    """A plan over the given points, by default one factor at a time."""
    base = {name: levels[0] for name, levels in factors.items()}
    if points is None:
        points = [base] + [
            {**base, name: level} for name, levels in factors.items() for level in levels[1:]
        ]
    entries = [
        {
            "cell": "-".join([*point.values(), str(seed)]), "levels": dict(point), "seed": seed,
            "settings": {}, "inputs": "", "prints": {}, "flops": 100.0, "refused": "",
        }
        for seed in range(seeds)
        for point in points
    ]  # fmt: skip
    return Plan("sweep.py", [], "0" * 40, metrics or {"eval/loss": "lower"}, factors, entries)


def records(made: Plan, value: Value) -> dict[str, dict]:
    """A record for each cell: `value(levels, seed)`, None for a run that diverged and NaN for one
    that failed."""
    found = {}
    for entry in made.entries:
        number = value(entry["levels"], entry["seed"])
        state = "diverged" if number is None else "done"
        if number != number:
            state, number = "failed", None
        metrics = {name: number for name in made.metrics}
        found[entry["cell"]] = {
            **entry, "state": state, "reason": "" if state == "done" else "why", "attempts": 1,
            "metrics": metrics, "first": {name: 9.0 for name in made.metrics}, "seconds": 10.0,
            "tokens": 100, "curves": {name: [[50, 5.0], [100, number]] for name in made.metrics},
            "ended": f"2026-01-01T00:00:{entry['seed']:02}",
        }  # fmt: skip
    return found


def written(folder, made: Plan, found: Mapping[str, Mapping]) -> Ledger:
    """A ledger with this plan and these records on disk."""
    import dataclasses

    ledger = Ledger(folder)
    folder.mkdir(exist_ok=True)
    write_json(ledger.plan_file, dataclasses.asdict(made))
    for key, record in found.items():
        ledger.cell(key).mkdir(parents=True)
        write_json(ledger.cell(key) / "config.json", record.get("config", {}))
        ledger.finish(key, record)
    return ledger
