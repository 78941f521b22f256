"""A data set, a layout and an objective are one row each, added here from outside."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from research.data.config import DataConfig
from research.data.corpus import open_corpus
from research.data.documents import TextDocuments
from research.data.files import FileDocuments
from research.data.formats import RECORDS
from research.data.layouts import LAYOUTS, Layout
from research.data.packing import PackedWindows
from research.data.sources import SOURCES, NamedSource, open_source
from research.experiment.config import complete, from_json
from research.objectives.causal_lm import CausalLM
from research.objectives.choose import OBJECTIVES, make_objective
from research.objectives.config import TokenLossConfig


def open_poems(cache: Path):
    """Two poems."""
    return TextDocuments({"a": "so much depends\n" * 9, "b": "upon a red\n" * 9}), None, {"by": "W"}


def read_preferred(row, columns):
    """The text that was liked better."""
    return {"preferred": str(row[columns["chosen"]])}


def preferred_windows(documents, options):
    """Packed as texts are."""
    store = options.tokens(documents, "preferred")
    eos = options.tokenizer.eos_id
    return PackedWindows(
        store,
        options.length,
        seed=options.seed,
        bos_id=None,
        eos_id=eos,
        overlap=options.overlap,
    )


@dataclass(frozen=True)
class PreferredConfig(TokenLossConfig):
    """With a field of its own."""

    name: str = field(default="preferred", init=False)
    beta: float = 0.1


class Preferred(CausalLM):
    """The likelihood of what was preferred."""

    name, reads, config = "preferred", "preferences", PreferredConfig


PREFERENCES = Layout(
    ("preferred",),
    (("chosen", "rejected"),),
    read_preferred,
    preferred_windows,
    measured="preferred",
)


def test_a_source_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "poems", NamedSource(open_poems, gives="texts"))
    source = open_source("poems", tmp_path)
    assert len(source.train) == len(source.heldout) == 1
    assert source.provenance["by"] == "W" and source.provenance["heldout_bytes"] > 0
    with pytest.raises(ValueError, match="'poems' are texts, and the objective reads convers"):
        open_source("poems", tmp_path, "conversations")
    with pytest.raises(ValueError, match="poems.*has the fields text"):
        open_source("poems?text=body", tmp_path)


class Stanzas:
    """A file of texts with an empty line between them."""

    columns = ("text",)

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._texts = path.read_text().split("\n\n")

    def __len__(self):
        return len(self._texts)

    def identity(self, row):
        return f"{self.name}:{row}"

    def row(self, row, wanted):
        return {"text": self._texts[row]}


def test_a_format_of_files_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setitem(RECORDS, ".stanzas", Stanzas)
    (tmp_path / "poem.stanzas").write_text("so much depends\n\nupon")
    (tmp_path / "rows.csv").write_text("text\na red\n")
    documents = FileDocuments(tmp_path, "", tmp_path / "cache")
    texts = [documents[i]["text"] for i in range(len(documents))]
    assert texts == ["so much depends", "upon", "a red"]
    assert documents[1]["path"] == "poem.stanzas:1"


def test_a_named_source_of_another_layout_is_refused(tmp_path):
    for name, wanted in (("stdlib", "conversations"), ("alpaca", "texts"), ("stdlib", "pairs")):
        with pytest.raises(ValueError, match=f"data '{name}' are .* reads {wanted}; set config"):
            open_source(name, tmp_path, wanted)


def test_a_layout_and_an_objective_are_one_row_each(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(LAYOUTS, "preferences", PREFERENCES)
    monkeypatch.setitem(OBJECTIVES, "preferred", Preferred)
    lines = [f'{{"chosen": "good {"ab" * i}", "rejected": "bad"}}\n' for i in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(lines))

    e = from_json(complete({"objective": {"name": "preferred", "beta": 0.5}}))
    assert e.objective == PreferredConfig(beta=0.5)
    config = DataConfig(source=str(tmp_path / "x.jsonl"), tokenizer="bytes", sequence_length=32)
    corpus = open_corpus(config, wanted=OBJECTIVES["preferred"].reads)
    objective = make_objective(e.objective, corpus.tokenizer)
    windows = corpus.train_windows(objective.window_length(32), objective.overlap, seed=0)
    example = objective.example(windows[0], np.random.default_rng(0))
    assert example["inputs"].shape == (32,) and example["weights"].sum() > 16
    assert corpus.heldout_size()[0] == corpus.provenance["heldout_bytes"]
