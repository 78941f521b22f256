"""The recipes of applications: each says how it is measured, and its smoke form runs."""

import ast
import json
from dataclasses import replace

import pytest

from research.data import job_conversations
from research.data.job_conversations import HELD_OUT
from research.evals.choose import make_evaluations
from research.evals.evaluation import RunData
from research.run.resolve import from_config
from research.training.metrics import read_rows
from tests.checkpoints import save_checkpoint
from tests.configs import ROOT, experiment, load_config
from tests.data.chat_templates import TEMPLATES
from tests.families import FAMILIES

pytestmark = pytest.mark.usefixtures("small_library")

NAMES = sorted(path.stem for path in (ROOT / "configs" / "applications").glob("*.py"))
FROM_A_CHECKPOINT = ("chatbot", "content", "summarization")
NEEDS = {"data": "duckdb", "translation": "sacrebleu", "summarization": "rouge_score"}
STORIES = [
    {"question": f"Who is {n}?", "answer": [f"The {n}th"], "passage": f"The {n}th came. " * 90}
    for n in range(20)
]
ARTICLES = [{"document": f"A {n}. B. C. D.", "summary": f"It is {n}."} for n in range(900)]
ALPACA = [
    {"instruction": f"Tell {n}", "input": "", "output": f"A considerable {n} answer " * 4}
    for n in range(900)
]


@pytest.fixture
def packages(monkeypatch):
    """Small records in place of those of packages."""
    made = {"narrativeqa": STORIES, "xsum": ARTICLES, "alpaca": ALPACA}
    monkeypatch.setattr(job_conversations, "read_packaged", lambda name, _: made[name])


def test_there_is_a_recipe_for_each_job():
    assert NAMES == ["chatbot", "code", "content", "data", "summarization", "translation"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_measured_against(name, packages):
    file = ROOT / "configs" / "applications" / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    for words in ("Metric:", "Baseline", "Split and seed:", "python -m research.train"):
        assert words in docstring
    assert f"applications/{name}.py" in docstring and "research.apply" in docstring
    config = load_config(f"applications/{name}")
    assert bool(config.init) == (name in FROM_A_CHECKPOINT) and config.evals
    if not config.init:
        from_config(config)


@pytest.mark.parametrize("name", ["chatbot", "content"])
def test_its_evaluations_ask_what_was_held_out(name, packages):
    config = load_config(f"applications/{name}")
    made = make_evaluations(config.evals.to_dict(), RunData(kind="decoder"))
    if name == "content":
        asked = [brief.topic for _, brief in made["briefs"].briefs]
        assert asked == [f"Tell {n}" for n in range(850, 900)]
    else:
        assert {one.source for one in made["grounded"].questions} == {"story 18", "story 19"}
        assert made["closed"].embedder == "" and len(made["grounded"].documents) == 2


def test_conversations_of_jobs_are_of_what_is_not_held_out(packages, tmp_path):
    texts, held = {}, {}
    for name in ("xsum", "alpaca_briefs", "narrativeqa"):
        opened = getattr(job_conversations, f"open_{name}")(tmp_path)
        texts[name], held[name] = ([d["conversation"] for d in part] for part in opened[:2])
    assert len(texts["xsum"]) == 800 and len(held["xsum"]) == 100 == len(HELD_OUT["xsum_heldout"]())
    # A brief's text meets its brief: it was read off it.
    for record in HELD_OUT["alpaca_briefs"]()[:5]:
        fields = {k: v for k, v in record.items() if k != "text"}
        brief = job_conversations.read_brief(record["topic"], fields)
        met = brief.met(record["text"])
        assert all(met.values()) and {"min_words", "max_words", "format"} <= met.keys()
    turns = [json.loads(text) for text in texts["narrativeqa"]]
    for messages in turns:
        assert [one["role"] for one in messages] == ["system", *["user", "assistant"] * 2]
        asked, said = messages[1]["content"], messages[2]["content"]
        number = said.rpartition("[")[2].rstrip("]")
        assert (
            said == job_conversations.NOTHING
            or said.split(" [")[0] in asked.partition(f"[{number}] ")[2].split("\n")[0]
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["code", "content", "data", "translation"])
def test_the_smoke_form_runs(name, tmp_path, packages):
    from research.train import train

    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="an extra has it")
    arg, changes = "smoke", {}
    if name == "content":
        model = replace(FAMILIES["llama2_7b"], vocab_size=320, max_length=256)
        save_checkpoint(tmp_path / "model", model, template=TEMPLATES["chatml"]["plain"])
        arg = f"smoke,init={tmp_path / 'model'}"
        changes = {"data.sequence_length": 256}
    e = experiment(f"applications/{name}", arg, **changes)
    assert train(e, tmp_path / "run", live=False).exit_code == 0
    last = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "eval/loss" in row][-1]
    names = {"content": "briefs/constraints_met", "data": "queries/executed"}
    names |= {"code": "infilling/exact_match", "translation": "translated/chrf"}
    assert f"eval/{names[name]}" in last
