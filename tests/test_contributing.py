"""What CONTRIBUTING.md says is enough: each addition is made here from outside by a row of a table,
and used through the ordinary entry points."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from research import tree
from research.data.documents import TextDocuments
from research.data.sources import SOURCES, NamedSource
from research.evals.choose import EVALUATIONS
from research.evals.evaluation import Evaluation, Item
from research.interop.convert import convert
from research.interop.huggingface.families import llama
from research.interop.huggingface.families.fields import integer
from research.interop.huggingface.families.table import FAMILIES
from research.interop.load import load
from research.interop.storage.family import Family
from research.models.config import ModelConfig
from research.objectives.causal_lm import CausalLM
from research.objectives.choose import OBJECTIVES
from research.objectives.config import TokenLossConfig
from research.run.opened import open_run
from research.training.metrics import read_rows
from research.weights.formats import FORMATS, Format
from tests.checkpoints import save_checkpoint
from tests.configs import experiment

STEPS = {"train.steps": 2, "train.eval_every": 1, "train.sample_tokens": 0}
# The row that the docstring of research/weights/formats.py shows.
INT3 = Format("int3", bits=3, codes="integer", group=32, error=0.5 / 3)


def open_rhymes(cache):
    """A source: documents to train on, documents to hold out or None, facts for the provenance."""
    lines = "the cat sat on the mat and that was that\n"
    return TextDocuments({f"rhyme {n}": lines * (n + 8) for n in range(20)}), None, {"by": "us"}


@dataclass(frozen=True)
class CountedConfig(TokenLossConfig):
    """The settings of an objective; `name` is the row's."""

    name: str = field(default="counted", init=False)
    bonus: float = 0.0


@dataclass(frozen=True)
class Counted(CausalLM):
    """An objective, a causal one here, with a further metric."""

    bonus: float = 0.0

    name = "counted"
    config: ClassVar[type] = CountedConfig
    reports = ("tokens_per_row",)

    @classmethod
    def make(cls, config, tokenizer):
        """From the settings."""
        return cls(config.label_smoothing, config.z_loss, config.bonus)

    def loss(self, model, trainable, held, batch, key):
        """The causal loss, and how many tokens of a row count."""
        total, count, totals = super().loss(model, trainable, held, batch, key)
        rows = jnp.asarray(batch["weights"].shape[0], jnp.float32)
        return total + self.bonus * count, count, {**totals, "tokens_per_row": (count, rows)}


@dataclass(frozen=True)
class WordsConfig:
    """The settings of an evaluation in config.evals."""

    scale: float = 1.0


@dataclass(frozen=True)
class Words(Evaluation):
    """An evaluation: how many words the model's head has."""

    scale: float = 1.0

    config = WordsConfig

    @classmethod
    def make(cls, config, data):
        """From the settings."""
        return cls(config.scale)

    def items(self, opened):
        """One item."""
        yield Item("head", {"words": (self.scale * opened.model.config.vocab_size, 1.0)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of an objective, a source, a metric and an evaluation that the package knows nothing
    of, and one of adapters over a format of the same kind."""
    from research.train import train

    folder = tmp_path_factory.mktemp("contributed")
    with pytest.MonkeyPatch.context() as table:
        table.setitem(SOURCES, "rhymes", NamedSource(open_rhymes, gives="texts"))
        table.setitem(OBJECTIVES, "counted", Counted)
        table.setitem(EVALUATIONS, "words", Words)
        table.setitem(FORMATS, "int3", INT3)
        settings = {"objective.name": "counted", "data.source": "rhymes", "objective.bonus": 2.0}
        more = {"data.tokenizer": "bytes", "model.vocab_size": 320}
        e = experiment(
            "quickstart", "smoke", **STEPS, **settings, **more, evals={"words": {"scale": 0.5}}
        )
        done = train(e, folder / "run", live=False)
        tuned = experiment(
            "finetune",
            "task=causal_lm,method=lora,data=rhymes,smoke",
            init=str(folder / "run"),
            **{**STEPS, "quantize.format": "int3"},
        )
        assert train(tuned, folder / "tuned", live=False).exit_code == 0
        # A format is asked for by name again when the run is opened.
        leaves = tree.paths(open_run(folder / "tuned").params, lambda x: hasattr(x, "einsum"))
        yield folder, done, leaves


def test_an_objective_and_a_source_train(run):
    folder, done, _ = run
    assert done.exit_code == 0 and done.step == 2
    plain = [
        row["loss"] - row["nll"] for row in read_rows(folder / "run/metrics.jsonl") if "nll" in row
    ]
    assert plain == pytest.approx([2.0] * len(plain), abs=1e-4) and plain  # the bonus, in float32
    assert "rhymes" in (folder / "run/config.json").read_text()


def test_a_metric_is_logged_evaluated_and_drawn(run):
    folder, done, _ = run
    rows = read_rows(folder / "run/metrics.jsonl")
    assert all(0 < row["tokens_per_row"] <= 64 for row in rows if "loss" in row)
    assert any("eval/tokens_per_row" in row for row in rows)
    assert "tokens_per_row" in done.metrics
    # One figure with both curves.
    figure = (folder / "run/report.html").read_text().partition("<figcaption>tokens_per_row")[2]
    assert "held out" in figure.partition("</figure>")[0]


def test_an_evaluation_is_chosen_by_the_config(run):
    folder, _, _ = run
    rows = [row for row in read_rows(folder / "run/metrics.jsonl") if "eval/loss" in row]
    assert rows and all(row["eval/words/words"] == 160.0 for row in rows)


def test_a_format_holds_the_weights_under_adapters(run):
    _, _, leaves = run
    formats = {path: leaf.base.format for path, leaf in leaves.items() if hasattr(leaf, "base")}
    assert formats and set(formats.values()) == {"int3"}


def test_a_family_comes_in_and_goes_out(tmp_path, monkeypatch):
    """LLaMA's layers with sinusoidal positions, under names of its own."""

    def read_config(values, names):
        changes = {"position": "sinusoidal", "rope_theta": 10000.0}
        plain = llama.read_config({**values, "model_type": "llama"}, names)
        return replace(plain, **changes, layers=integer(values, "depth"))

    def write_config(c):
        values = llama.write_config(c)
        return {**values, "model_type": "verse", "architectures": ["VerseLM"], "depth": c.layers}

    def rules(c):
        return tuple(
            replace(rule, name=rule.name.replace("model.", "verse.")) for rule in llama.rules(c)
        )

    family = Family(
        ("verse",),
        lambda c: c.position == "sinusoidal" and c.norm == "rms",
        read_config,
        write_config,
        rules,
    )
    monkeypatch.setitem(FAMILIES, "verse", family)
    config = ModelConfig(
        vocab_size=320,
        layers=2,
        d_model=32,
        heads=4,
        kv_heads=2,
        head_size=8,
        d_ff=64,
        max_length=64,
        position="sinusoidal",
    )
    save_checkpoint(tmp_path / "ours", config)
    convert(tmp_path / "ours", tmp_path / "theirs", "hf")
    assert '"VerseLM"' in (tmp_path / "theirs/config.json").read_text()
    ids = np.arange(12)[None] % 300
    one, other = (np.asarray(load(tmp_path / name).logits(ids)) for name in ("ours", "theirs"))
    np.testing.assert_array_equal(one, other)
    assert "verse.embed_tokens.weight" in _tensor_names(tmp_path / "theirs/model.safetensors")


def _tensor_names(file) -> set[str]:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        return set(tensors.keys())
