"""Tables that grow for more tokens or more learned positions than a checkpoint has."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from research import tree
from research.interop.load import load, open_checkpoint
from research.interop.restored import restore_run
from research.interop.storage.grow import grow, mean_rows, repeated_rows
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.families import FAMILIES
from tests.interop.memory import in_memory, random_params
from tests.runs import started_run

# Fewer rows than the bytes' tokenizer has tokens, 292, and fewer positions than a text has.
SMALL = replace(FAMILIES["gpt2"], vocab_size=288, max_length=16)
TABLES = {
    "gpt2": {"embed/table", "embed/positions"},
    "opt_125m": {"embed/table", "embed/positions"},
    "llama2_7b": {"embed/table", "head/table"},
    "bert_base": {"embed/table", "embed/positions", "head/output_bias"},
    "t5_small": {"embed/table"},
    "bart_base": {
        *("embed/table", "embed/positions", "embed/encoder_positions", "head/output_bias"),
    },
    "transformer_base": {"embed/table"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(folder / "small", SMALL)
    rows = [json.dumps({"text": f"alpha beta {n} " * 5}) for n in range(120)]
    (folder / "texts.jsonl").write_text("\n".join(rows))
    return folder


def settings(base, **changes):
    changes = {"data.sequence_length": 32, "data.batch_size": 8, **changes}
    arg = f"task=causal_lm,data={base / 'texts.jsonl'},smoke"
    return experiment("finetune", arg, init=str(base / "small"), **changes)


@pytest.mark.parametrize("family", TABLES)
def test_every_table_grows_and_nothing_else_changes(family):
    c = FAMILIES[family]
    checkpoint = in_memory(c, random_params(c))
    wanted = replace(c, vocab_size=c.vocab_size + 5, max_length=2 * c.max_length + 3)
    grown, lines = grow(checkpoint, wanted)
    changed = {
        path for path, p in grown.parameters.items() if p.shape != checkpoint.parameters[path].shape
    }
    assert changed == TABLES[family]
    assert all(any(path in line for line in lines) for path in changed)
    for path in changed:
        before, after = checkpoint.parameters[path].read(()), grown.parameters[path].read(())
        assert after.shape == grown.parameters[path].shape
        if path.endswith("positions"):
            rows = before[c.position_offset :]  # what stands before the first position's stays
            expected = np.concatenate([before, rows, rows[:3]])
        else:
            expected = np.concatenate([before, np.repeat(before.mean(0)[None], 5, axis=0)])
        np.testing.assert_allclose(after, expected, atol=1e-6)  # a mean in another order
        np.testing.assert_array_equal(after[: len(before)], before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_new_rows_are_of_the_tables_type(dtype):
    table = jax.numpy.ones((4, 3), dtype)
    for rows in (mean_rows(np.asarray(table), 2), repeated_rows(np.asarray(table), 7)):
        assert rows.dtype == table.dtype and np.all(rows == 1)


def test_the_lines_that_refuse_lead_to_a_run(base, tmp_path):
    changes = {}
    for name in ("max_length", "vocab_size"):
        with pytest.raises(ValueError, match=f"set config.model.{name} to at least") as refused:
            started_run(settings(base, **changes), tmp_path / name)
        advice = re.search(r"config\.(model\.\w+) to at least (\d+)", str(refused.value))
        changes[advice[1]] = int(advice[2])  # followed to the letter
    session = started_run(settings(base, **changes), tmp_path / "run")
    assert any("4 new rows in embed/table: the mean of the 288" in line for line in session.notes)
    assert any("16 new rows in embed/positions" in line for line in session.notes)
    table, old = session.state.trainable["embed"]["table"], load(base / "small").params["embed"]
    np.testing.assert_allclose(table[288:], np.repeat(old["table"].mean(0)[None], 4, 0), atol=1e-6)


def test_a_frozen_table_grows_alike_at_every_start_and_on_a_mesh(base, tmp_path):
    larger = {"model.vocab_size": 292, "model.max_length": 32, "tune.method": "lora"}
    begun = started_run(settings(base, **larger, mesh="fsdp:4,tensor:2"), tmp_path / "run")
    again = started_run(settings(base, **larger, mesh="fsdp:4,tensor:2"), tmp_path / "run")
    read = restore_run(tmp_path / "run", open_checkpoint)
    first = tree.paths(jax.device_get(begun.state.held["base"]))
    for other in (again.state.held["base"], read.base):
        for path, leaf in tree.paths(jax.device_get(other)).items():
            np.testing.assert_array_equal(leaf, first[path], err_msg=path)
    assert not any("new rows" in line for line in again.notes) and len(first["embed/table"]) == 292
    # The adapters fit on the checkpoint too, whose tables grow for them.
    assert load(base / "small", adapter=tmp_path / "run").config.vocab_size == 292


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 287), ("max_length", 15)])
def test_a_table_does_not_shrink(field, value):
    checkpoint = in_memory(SMALL, random_params(SMALL))
    with pytest.raises(
        ValueError, match=rf"model.{field}={value} is below .* at least {value + 1}"
    ):
        grow(checkpoint, replace(SMALL, **{field: value}))
