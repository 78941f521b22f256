"""A search: what is proposed is run once each, also by one that was stopped; no run is made."""

import json
from collections import Counter

import pytest

from research.experiment.config import from_json
from research.files import read_json
from research.run import loop
from research.sweep import running
from research.sweep.ledger import Ledger
from research.sweep.report import write_report
from research.sweep.search import Search, run_search
from research.sweep.workers import Trainer

CONFIG = """
from research.experiment import small_config
from research.sweep.search import Search

def get_config(arg=""):
    return small_config(smoke=True)

def get_search():
    ranges = {"optimizer.learning_rate": (1e-3, 1e-1, "log"), "model.layers": [2, 1]}
    return Search(ranges, trials=12)
"""


@pytest.fixture
def config(tmp_path) -> str:
    file = tmp_path / "search.py"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture
def trained(monkeypatch):
    """The cells that were trained. The best rate is 3e-3, and one layer diverges at 5e-2."""
    calls: list[str] = []

    def train(trainer, cell):
        calls.append(cell.name)
        values = json.loads((cell / "config.json").read_text())
        rate, layers = values["optimizer"]["learning_rate"], values["model"]["layers"]
        (cell / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        row = {"step": 8, "loss": 3.0, "eval/loss": abs(rate - 3e-3) + layers, "tokens": 9}
        if layers == 1 and rate > 5e-2:
            row["nonfinite"] = {"loss": "nan"}
        (cell / "run" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return 0

    monkeypatch.setattr(Trainer, "train", train)
    return calls


def search(config, ledger, workers=2):
    return run_search(ledger, config, running.load_config(config), [], workers)


def test_every_trial_is_run_once_and_the_config_itself_first(config, tmp_path, trained):
    pytest.importorskip("optuna", reason="wants the extra [search]")
    ledger = Ledger(tmp_path / "search")
    assert search(config, ledger) == 0
    records = ledger.records().values()
    assert len(records) == len(trained) == 12 and set(Counter(trained).values()) == {1}
    [first] = [record for record in records if record["levels"]["trial"] == "0"]
    assert first["settings"] == {}
    best = min(records, key=lambda record: record["metrics"]["eval/loss"])
    assert best["metrics"]["eval/loss"] < 1.1
    assert search(config, ledger) == 0 and len(trained) == 12  # nothing is left


def test_a_search_that_was_stopped_goes_on_with_what_it_had_asked_for(
    config, tmp_path, trained, monkeypatch
):
    pytest.importorskip("optuna", reason="wants the extra [search]")
    ledger, run_cells = Ledger(tmp_path / "search"), running.run_cells
    rounds = []

    def stopped(*arguments):
        rounds.append(arguments)
        return 42 if len(rounds) == 3 else run_cells(*arguments)

    monkeypatch.setattr(running, "run_cells", stopped)
    assert search(config, ledger) == 42
    asked = set(rounds[-1][1].cells)
    assert search(config, ledger) == 0
    assert asked <= set(trained) and len(set(trained)) == len(trained) == 12


@pytest.mark.slow
def test_a_study_of_real_runs_is_in_the_journal_beside_the_ledger(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna", reason="wants the extra [search]")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    def train(trainer, cell):  # in this process, without the seconds of another one's start
        experiment = from_json(read_json(cell / "config.json"))
        return loop.train(experiment, cell / "run", live=False).exit_code

    monkeypatch.setattr(Trainer, "train", train)
    file = tmp_path / "search.py"
    file.write_text(CONFIG.replace("[2, 1]", "[2]").replace("trials=12", "trials=2"))
    ledger = Ledger(tmp_path / "search")
    assert search(str(file), ledger, workers=1) == 0
    write_report(ledger)
    journal = JournalFileBackend(str(ledger.folder / "optuna.journal"))
    study = optuna.load_study(study_name="trial", storage=JournalStorage(journal))
    told = {str(trial.number): trial.value for trial in study.trials}
    records = ledger.records().values()
    losses = {one["levels"]["trial"]: one["metrics"]["eval/loss"] for one in records}
    assert told == losses and len(set(losses.values())) == 2
    assert study.best_value == min(losses.values())
    rates = {trial.params["optimizer.learning_rate"] for trial in study.trials}
    assert len(rates) == 2 and {0.01} < rates  # the config's own first
    assert "trial" in (ledger.folder / "report.md").read_text()
    lines = ledger.index.read_text().splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["done"] * 2
    monkeypatch.setattr(Trainer, "train", None)  # nothing is left
    assert search(str(file), ledger, workers=1) == 0


@pytest.mark.parametrize(
    "given", [(1, 1), (3, 2), (1e-3, 1e-1, "linear"), [], "abc", (1,), (1, 2, 3, 4)]
)
def test_what_is_no_range_is_refused(given):
    with pytest.raises(ValueError, match="the range of model.layers"):
        Search({"model.layers": given})


def test_a_config_outside_its_range_is_refused(config, tmp_path):
    pytest.importorskip("optuna", reason="wants the extra [search]")
    changed = running.load_config(config)
    changed.model.layers = 3
    with pytest.raises(ValueError, match="config.model.layers=3 is not in the range"):
        run_search(Ledger(tmp_path), config, changed, [], 1)
