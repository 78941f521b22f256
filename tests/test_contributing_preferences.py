"""An objective that compares with a frozen model, added as CONTRIBUTING.md says: one class with its
settings, one row of OBJECTIVES, and one row of LAYOUTS for the records that it reads."""

import json
import math
import shutil
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.layouts import LAYOUTS, Layout, read_texts
from research.data.records import record_windows
from research.files import read_json
from research.fit.compile import abstract_batch, objective_without_data
from research.fit.targets import parse_target
from research.fit.weigh import weigh
from research.objectives.choose import OBJECTIVES
from research.objectives.config import ObjectiveConfig
from research.objectives.objective import Objective
from research.ops.loss import cross_entropy
from research.run.program import make_program
from research.training.metrics import read_rows
from research.weights.rules import attach
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.families import FAMILIES

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class DPOConfig(ObjectiveConfig):
    """`beta` is how much a log-probability ratio counts."""

    name: str = field(default="dpo", init=False)
    beta: float = 0.1


@dataclass(frozen=True)
class DPO(Objective):
    """Direct preference optimization (arXiv:2305.18290, eq. 7). Segment 1 of a row is the prompt
    with the chosen answer, segment 2 the prompt with the rejected one."""

    eos_id: int
    beta: float = 0.1

    name = "dpo"
    config = DPOConfig
    model_kind = "decoder"
    reads = "preferences"
    overlap = 0
    begins_texts = False
    answers_chats = False
    classifies = False
    reports = ("preferred",)
    bits_per_byte = False
    holds = ("reference",)

    @classmethod
    def make(cls, config, tokenizer):
        """Texts end in the tokenizer's end."""
        return cls(tokenizer.eos_id, config.beta)

    def window_length(self, sequence_length):
        """Half of the row is for each answer."""
        return sequence_length // 2

    def predicted_tokens(self, sequence_length):
        """At most all of them."""
        return float(sequence_length)

    def example(self, window, rng):
        """inputs, targets, weights (1 for the answers), segments, positions, each [T]."""
        length, prompt = len(window["prompt"]), self._ids(window, "prompt")
        sides = []
        for segment, answer in enumerate(FIELDS[1:], 1):
            text = [*prompt, *self._ids(window, answer), self.eos_id][: length + 1]
            side = np.zeros((5, length), np.int32)
            size = len(text) - 1
            side[:, :size] = (text[:-1], text[1:], [1] * size, [segment] * size, range(size))
            side[2, : len(prompt) - 1] = 0  # the prompt is given
            sides.append(side)
        names = ("inputs", "targets", "weights", "segments", "positions")
        row = dict(zip(names, np.concatenate(sides, axis=1)))
        return row | {"weights": row["weights"].astype(np.float32)}

    def loss(self, model, trainable, held, batch, key):
        """Sum over pairs of -log sigmoid(beta * margin), their count, how many are preferred."""
        ours = self._answers(model, attach(held["base"], trainable, key), batch, key)
        theirs = self._answers(model, attach(held["base"], held["reference"]), batch, None)
        gain_B2 = ours - jax.lax.stop_gradient(theirs)
        margin_B = self.beta * (gain_B2[:, 0] - gain_B2[:, 1])
        real_B = (jnp.sum(batch["weights"], axis=1) > 0).astype(jnp.float32)
        count = jnp.sum(real_B)
        total = -jnp.sum(jax.nn.log_sigmoid(margin_B) * real_B)
        return total, count, {"preferred": (jnp.sum((margin_B > 0) * real_B), count)}

    def _answers(self, model, params, batch, key):
        """Log-probabilities [B, 2] of the chosen and the rejected answer."""
        hidden_BTD, _ = model.hidden(params, batch, key)
        _, nll_BT = cross_entropy(model.logits(params, hidden_BTD), batch["targets"])
        said_BT = -nll_BT * batch["weights"]
        return jnp.stack([jnp.sum(said_BT * (batch["segments"] == n), 1) for n in (1, 2)], axis=1)

    def _ids(self, window, name):
        return window[name][window[f"{name}_segments"] > 0].tolist()


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """(a folder with preferences and a checkpoint, the rows in the tables)."""
    folder = tmp_path_factory.mktemp("preferences")
    rows = [
        {"prompt": f"is {i} even? ", "chosen": "yes" if i % 2 else "no", "rejected": "maybe not"}
        for i in range(60)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_checkpoint(folder / "base", replace(FAMILIES["llama2_7b"], vocab_size=320))
    with pytest.MonkeyPatch.context() as table:
        table.setitem(OBJECTIVES, "dpo", DPO)
        layout = Layout(FIELDS, (FIELDS,), read_texts, record_windows, measured="chosen")
        table.setitem(LAYOUTS, "preferences", layout)
        yield folder


def settings(folder, method):
    """Four steps of DPO, saved after the second and the fourth."""
    more = {"train.steps": 4, "train.eval_every": 4, "checkpoint.every": 2, "checkpoint.keep": 4}
    more |= {"train.sample_tokens": 0}
    arg = f"task=dpo,method={method},data={folder / 'pairs.jsonl'},smoke"
    return experiment("finetune", arg, init=str(folder / "base"), **more, **{"objective.beta": 0.5})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_objective_with_a_reference_trains_saves_and_resumes_bit_for_bit(added, method):
    from research.train import train

    e, run, again = settings(added, method), added / method, added / f"{method} again"
    assert train(e, run, live=False).exit_code == 0
    rows = [row for row in read_rows(run / "metrics.jsonl") if "preferred" in row]
    # The model is its reference at the first step, so the margin is 0.
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["loss"] < rows[0]["loss"]
    last = [row for row in read_rows(run / "metrics.jsonl") if "eval/loss" in row][-1]
    assert last["eval/loss"] < math.log(2) and 0.5 < last["eval/preferred"] <= 1

    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/4")
    assert train(e, again, live=False).exit_code == 0
    whole, resumed = (
        read_json(folder / "checkpoints/4/record/metadata")["arrays"] for folder in (run, again)
    )
    assert whole == resumed  # with the fingerprint of every array
    assert any(path.startswith("held/reference/") for path in whole)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fit_counts_the_reference(added, method):
    e = settings(added, method)
    program = make_program(e, objective_without_data(e), jax.devices()[:1])
    assert abstract_batch(program)["inputs"].shape == (8, e.data.sequence_length)
    reference, base = (jax.tree.leaves(program.held_specs[name]) for name in ("reference", "base"))
    sizes = [leaf.shape for leaf in reference]
    assert sizes == [leaf.shape for leaf in jax.tree.leaves(program.trainable_specs)]
    weights = weigh(e, parse_target("cpu:1"))
    of_base = sum(math.prod(leaf.shape) for leaf in base) * 4  # float32, as everything in here
    assert weights.frozen == weights.trained + of_base
