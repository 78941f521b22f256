"""What is written for an article is compared with its first three sentences, item by item."""

import json
from types import SimpleNamespace

import pytest

from research.evals import generation
from research.evals.evaluation import RunData
from research.evals.generation import Generation, GenerationConfig


def test_the_lead_has_numbers_of_its_own_and_the_gain_is_of_each_article(tmp_path, monkeypatch):
    articles = [
        {"document": "A cat sat. It ran! Why? Nobody knows.", "summary": "cat ran"},
        {"document": "Short", "summary": "short"},
    ]
    file = tmp_path / "articles.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in articles))
    settings = {"data": str(file), "prompt": "{document}", "metrics": ("f1",)}
    config = GenerationConfig(**settings, reference="summary", lead="document")
    made = Generation.make(config, RunData(kind="decoder"))
    assert [task.lead for task in made.tasks] == ["A cat sat. It ran! Why?", "Short"]
    texts = [SimpleNamespace(text=t, token_ids=(1,), finish="eos") for t in ("cat ran", "no")]
    monkeypatch.setattr(generation, "write", lambda *_: texts)
    first, second = made.items(None)
    # Of five words without the article two are the reference's two.
    assert first.totals["lead3_f1"] == (pytest.approx(2 * 2 / 7), 1.0)
    assert first.totals["gain_f1"] == (pytest.approx(1 - 4 / 7), 1.0)
    assert second.totals["gain_f1"] == (-1.0, 1.0)
    with pytest.raises(ValueError, match="wanted a text under article"):
        Generation.make(
            GenerationConfig(**settings, reference="summary", lead="article"),
            RunData(kind="decoder"),
        )
