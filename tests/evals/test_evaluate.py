"""`research.evaluate --evals` on a small checkpoint, alone and against another."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from research.data.tokenizers import load_tokenizer
from research.evals.choose import EVALUATIONS
from research.evals.ready import GROUPS
from research.experiment.fields import build
from research.files import building
from research.interop import native
from research.run import evaluated
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params

pytestmark = pytest.mark.usefixtures("quick_commands")
CONFIG = replace(FAMILIES["llama2_7b"], layers=1, max_length=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two checkpoints, questions and a text."""
    made = tmp_path_factory.mktemp("evaluate")
    tokenizer = load_tokenizer("bytes")
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size)
    for seed, name in enumerate(("one", "other")):
        with building(made / name) as target:
            native.write_native(in_memory(config, random_params(config, seed=seed)), target)
            tokenizer.save(target)
    records = [{"question": f"{n}?", "choices": ["yes", "no"], "answer": n % 2} for n in range(6)]
    (made / "questions.jsonl").write_text("\n".join(map(json.dumps, records)))
    (made / "text.txt").write_text("one two three four five " * 10)
    return made


def changes(folder: Path) -> list[str]:
    return [
        "mine.kind=choices",
        f"mine.data={folder / 'questions.jsonl'}",
        f"perplexity.text={folder / 'text.txt'}",
    ]


@pytest.mark.slow
def test_evaluations_by_name_print_numbers_with_intervals_and_differences(folder):
    done = subprocess.run(
        [sys.executable, "-m", "research.evaluate", f"--checkpoint={folder / 'one'}"]
        + ["--evals=mine,perplexity", f"--against={folder / 'other'}", "--json"]
        + [f"--set={change}" for change in changes(folder)]
        + [f"--output={folder}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert set(numbers) == {"mine", "perplexity"}
    form = {"value", "low", "high", "n"}
    acc, nll = numbers["mine"]["acc"], numbers["perplexity"]["nll_per_token"]
    assert form < acc.keys() and form < acc["difference"].keys() and acc["n"] == 6
    assert nll["low"] < nll["value"] < nll["high"] and nll["difference"]["value"]
    assert len((folder / "evals/mine.jsonl").read_text().splitlines()) == 6
    kept = json.loads((folder / "evals/mine.json").read_text())
    assert kept["metrics"]["acc"] == acc and kept["against"] == str(folder / "other")


def test_a_checkpoint_is_measured_by_name(folder):
    opened, run = evaluated.open_evaluated(None, str(folder / "one"))
    settings = evaluated.choose(["mine", "perplexity"], opened, changes(folder))
    chosen = evaluated.make_chosen(settings, opened)
    results = evaluated.evaluate(chosen, opened)
    assert run is None and [len(results[name].items) for name in settings] == [6, 4]
    assert results["mine"].less(results["mine"])["acc"].value == 0


def test_a_group_stands_for_its_evaluations_on_subsets_or_on_all_of_their_data(folder, capsys):
    opened, _ = evaluated.open_evaluated(None, str(folder / "one"))
    settings = evaluated.choose(["mine", "bias", "truth:full"], opened, ["bbq.questions=2"])
    assert [*settings] == ["mine", *GROUPS["bias"], *GROUPS["truth"]]
    assert settings["bbq"] == {"limit": 2, "least": 2, "questions": 2}
    assert settings["calibration"] == {"limit": 0}
    masked = SimpleNamespace(
        experiment=None, model=SimpleNamespace(config=SimpleNamespace(kind="encoder"))
    )
    some = ["crows_pairs", "stereoset", "winobias", "winogender"]
    assert [*evaluated.choose(["bias", "safety"], masked, [])] == some
    left = "as the model is of kind 'encoder': bbq, bold, honest, refusal"
    assert left in capsys.readouterr().err
    masked.model.config.kind = "encoder_decoder"
    with pytest.raises(ValueError, match="bias: nothing of it can be asked of a model of kind"):
        evaluated.choose(["bias"], masked, [])


def test_the_settings_of_groups_are_fields_of_their_evaluations():
    for name, member in (pair for group in GROUPS.values() for pair in group.items()):
        for fields in (member.small, member.full):
            built = build(EVALUATIONS[name].config, fields, name)
            assert {field: getattr(built, field) for field in fields} == fields


@pytest.mark.parametrize(
    ("names", "given", "line"),
    [
        (["heldout"], [], "a checkpoint has no held-out data; give --workdir"),
        (["mine"], [], "config.evals.mine: no evaluation 'mine'"),
        (["mine"], ["other.kind=choices"], "must be NAME.FIELD=VALUE with NAME one of mine"),
        (["mine"], ["mine=choices"], "must be NAME.FIELD=VALUE"),
        (["boolq"], ["boolq.limit=many"], "config.evals.boolq.limit='many' must be of type int"),
        (["pairs"], ["pairs.text=a"], "a decoder reads no pairs"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(names, given, line, folder):
    opened, _ = evaluated.open_evaluated(None, str(folder / "one"))
    with pytest.raises(ValueError, match=line):
        evaluated.make_chosen(evaluated.choose(names, opened, given), opened)


@pytest.mark.parametrize(
    ("settings", "opens"),
    [
        ({"heldout": {}}, True),
        ({"mine": {"kind": "entities"}}, True),
        ({"answers": {"data": "questions.json"}}, False),
        ({"boolq": {}}, False),
    ],
)
def test_a_run_opens_its_held_out_data_where_it_is_measured(settings, opens, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluated, "_run_data", lambda *_: seen.append(True))
    monkeypatch.setattr(evaluated, "make_evaluations", lambda settings, data: {})
    model = SimpleNamespace(config=SimpleNamespace(kind="decoder"))
    run = SimpleNamespace(experiment=object(), source="run", model=model)
    evaluated.make_chosen(settings, run)
    assert bool(seen) == opens
