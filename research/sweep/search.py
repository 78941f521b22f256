"""Search: Optuna proposes values of config fields, and the ledger runs them as a sweep's cells.

A config file says what is searched, beside its `get_config`:

    def get_search(arg=""):
        return Search({"optimizer.learning_rate": (1e-4, 1e-1, "log"), "model.layers": [2, 4]})

Trials are asked for in rounds of as many as there are workers. Trial 0 is the config as it is, and
the baseline of the report; below six seeds no trial gets a verdict, since the best of many is
lucky. Optuna's journal, `optuna.journal`, lies in the ledger's folder: a search that was stopped
goes on with the trials that it had asked for, and a proposal that was run before is not run again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from research import command
from research.sweep import running
from research.sweep.design import Sweep, choice
from research.sweep.ledger import Ledger
from research.sweep.plan import make_plan, merged, read_plan, write_plan

JOURNAL = "optuna.journal"
FACTOR = "trial"


@dataclass(frozen=True)
class Search:
    """What is searched.

    ranges   by the path of a config field: (low, high), (low, high, "log") or a list of choices;
             whole numbers at both ends give whole numbers
    trials   how many combinations are tried, the config itself among them
    seeds    values of `train.seed` of each trial, whose mean decides
    metrics  as of a `Sweep`; the first one is searched for

    ValueError for a range that is none of these.
    """

    ranges: Mapping[str, Sequence[Any]]
    trials: int = 20
    seeds: Sequence[int] = (0,)
    metrics: Mapping[str, str] = field(default_factory=lambda: {"eval/loss": "lower"})

    def __post_init__(self):
        for path, given in self.ranges.items():
            if isinstance(given, list) and given:
                continue
            ends = given[:2] if isinstance(given, tuple) else ()
            numbers = len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
            if not numbers or not ends[0] < ends[1] or given[2:] not in ((), ("log",)):
                raise ValueError(
                    f'the range of {path} is {given!r}; give (low, high), (low, high, "log") or '
                    "a list of choices"
                )
        if not self.ranges or self.trials < 1:
            raise ValueError("a search wants ranges and at least one trial")


def run_search(
    ledger: Ledger, spelling: str, config: ConfigDict, changes: Sequence[str], workers: int
) -> int:
    """Searches until all trials have ended; the exit code. ValueError without Optuna."""
    search = running.load_design(spelling, "get_search", Search)
    ledger.make()
    study = open_study(ledger, search, config)
    known = _distributions(search)
    while True:
        trials = study.get_trials(deepcopy=False)
        open_ones = [one.number for one in trials if one.state.name == "RUNNING"]
        ended = sum(one.state.is_finished() for one in trials)
        for _ in range(min(workers, search.trials - ended) - len(open_ones)):
            open_ones.append(study.ask(known).number)
        if not open_ones:
            return command.DONE
        code = _round(ledger, spelling, config, changes, workers, search, study)
        if code:
            return code
        for number in open_ones:
            _tell(study, number, _score(ledger, search, number))


def open_study(ledger: Ledger, search: Search, config: ConfigDict) -> Any:
    """Optuna's study in the ledger's journal, made where there is none, with the config's own
    values as the first trial. ValueError for a value of the config outside its range."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError:
        raise ValueError(
            "a search needs the package optuna; pip install 'graft-research[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = str(ledger.folder / JOURNAL)
    # Exclusive creation, which holds on NFS too, where its default of links may not.
    storage = JournalStorage(JournalFileBackend(file, lock_obj=JournalFileOpenLock(file)))
    better = next(iter(search.metrics.values()))
    study = optuna.create_study(
        storage=storage,
        study_name=FACTOR,
        direction="minimize" if better == "lower" else "maximize",
        load_if_exists=True,
    )
    # Another seed for a search that goes on, which would propose again what it began with.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
    if not study.get_trials(deepcopy=False):
        own = {path: _value(config, path) for path in search.ranges}
        for path, given in search.ranges.items():
            if not _within(own[path], given):
                raise ValueError(
                    f"config.{path}={own[path]!r} is not in the range {given!r}, and is the first "
                    "trial; change one of them"
                )
        study.enqueue_trial(own)
    return study


def _round(
    ledger: Ledger,
    spelling: str,
    config: ConfigDict,
    changes: Sequence[str],
    workers: int,
    search: Search,
    study: Any,
) -> int:
    """Runs the trials that were asked for; the exit code."""
    levels = {f"{one.number}": dict(one.params) for one in study.get_trials() if one.params}
    sweep = Sweep(choice(FACTOR, levels), seeds=search.seeds, metrics=search.metrics)
    plan, cells = make_plan(spelling, config, changes, sweep, search.seeds)
    plan = merged(ledger, plan, cells, "refuse")
    write_plan(ledger, plan, {key: cells[key] for key in plan.cells if key in cells})
    return running.run_cells(ledger, plan, workers)


def _score(ledger: Ledger, search: Search, number: int) -> float | None:
    """The mean of the metric over the seeds of a trial; None where a run did not end well."""
    plan = read_plan(ledger)
    metric = next(iter(search.metrics))
    mine = [one for one in plan.entries if one["levels"][FACTOR] == f"{number}"]
    records = [ledger.record(one["cell"]) or {} for one in mine]
    if any(record.get("state") != "done" for record in records):
        return None
    return sum(record["metrics"][metric] for record in records) / len(records)


def _tell(study: Any, number: int, score: float | None) -> None:
    import optuna

    # A second process on the same folder may have told already.
    failed = None if score is not None else optuna.trial.TrialState.FAIL
    study.tell(number, score, state=failed, skip_if_finished=True)


def _distributions(search: Search) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for path, given in search.ranges.items():
        if isinstance(given, list):
            found[path] = CategoricalDistribution(given)
            continue
        whole = all(isinstance(end, int) for end in given[:2])
        kind = IntDistribution if whole else FloatDistribution
        found[path] = kind(*given[:2], log=len(given) > 2)
    return found


def _within(value: Any, given: Sequence[Any]) -> bool:
    if isinstance(given, list):
        return value in given
    return given[0] <= value <= given[1]


def _value(config: ConfigDict, path: str) -> Any:
    node: Any = config
    for name in path.split("."):
        if name not in node:
            raise ValueError(f"config has no field {path!r}, which is to be searched")
        node = node[name]
    return node
