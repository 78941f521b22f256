"""An adapter on a table that is also the head changes both uses, in a run and in a peft folder."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from research import tree
from research.interop.adapter_check import check_adapter
from research.interop.load import load
from research.interop.peft.read import read_peft
from research.interop.peft.write import write_peft
from research.interop.storage.checkpoint import Checkpoint
from research.weights.lora import LoraAdapter
from research.weights.rules import attach
from tests.checkpoints import save_checkpoint
from tests.families import FAMILIES

IDS = np.array([[5, 70, 11, 33, 90, 20]])
TIED = {
    "embed_tokens": replace(FAMILIES["llama2_7b"], tied=True, layers=1),
    "wte": replace(FAMILIES["gpt2"], layers=1),
    "scaled": FAMILIES["gemma3_1b"],
}


def on_the_table(c, whole=False):
    """An adapter on the token table, or the whole table beside one on the queries."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    if not whole:
        scale = np.float32(0.1)
        a, b = draw(c.d_model, 4), draw(4, c.vocab_size)
        return {"embed": {"table": LoraAdapter(a, b, scale, table=True)}}
    a, b = draw(c.layers, c.d_model, 4), draw(c.layers, 4, c.heads, c.head_size)
    query = LoraAdapter(a, b, np.full(c.layers, 0.1, np.float32))
    table = draw(c.vocab_size, c.d_model)
    return {"embed": {"table": table}, "layers": {"attention": {"query": query}}}


def logits_with(base, adapters, ids=IDS):
    """What a run with these adapters computes: a tied model has one table."""
    plain = tree.paths(adapters, is_leaf=lambda node: not isinstance(node, dict))
    whole = {path: x for path, x in plain.items() if isinstance(x, np.ndarray)}
    loras = tree.unflatten({path: x for path, x in plain.items() if path not in whole})
    params = tree.unflatten({**tree.paths(base.params), **whole})
    return replace(base, params=attach(params, jax.tree.map(np.asarray, loras))).logits(ids)


@pytest.mark.parametrize(
    ("kind", "whole"), [("embed_tokens", False), ("wte", False), ("scaled", False), ("wte", True)]
)
def test_the_folder_computes_what_the_run_does(kind, whole, tmp_path):
    c = TIED[kind]
    save_checkpoint(tmp_path / "base", c)
    adapters = on_the_table(c, whole)
    (tmp_path / "peft").mkdir()
    write_peft(tmp_path / "peft", adapters, c)
    want = logits_with(load(tmp_path / "base"), adapters)
    again = load(tmp_path / "base", adapter=tmp_path / "peft")
    np.testing.assert_allclose(again.logits(IDS), want, atol=1e-5)
    fields = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    # peft ties adapters of a table by this name alone, and has no such setting for whole weights.
    ties = kind != "wte" and not whole
    assert (fields.get("ensure_weight_tying", False), again.config.tied) == (ties, ties)
    assert "lm_head" in (fields["modules_to_save"] if whole else fields["target_modules"])[-2:]


@pytest.mark.parametrize("family", ["t5_small", "bert_base"])
def test_a_table_of_several_uses_is_merged_instead(family, tmp_path):
    c = FAMILIES[family]
    with pytest.raises(ValueError, match="uses in several places .* --to=hf, which merges it"):
        write_peft(tmp_path, on_the_table(c), c)


def test_a_folder_that_computes_something_else_is_not_certified(tmp_path):
    c = TIED["embed_tokens"]
    save_checkpoint(tmp_path / "base", c)
    for name in ("run", "one_use", "other_scale"):
        (tmp_path / name).mkdir()
        write_peft(tmp_path / name, on_the_table(c), replace(c, tied=name != "one_use"))
    right = check_adapter(str(tmp_path / "base"), tmp_path / "run", tmp_path / "run")
    assert right["bit_equal"] == right["values"] and right["logit_difference"] == 0
    assert "merge_and_unload changes it twice" in right["notes"][-1]
    # Every number in it comes back, but the head is left out.
    with pytest.raises(ValueError, match="head/table/.* is lost"):
        check_adapter(str(tmp_path / "base"), tmp_path / "run", tmp_path / "one_use")
    config = tmp_path / "other_scale/adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"lora_alpha": 2 * fields["lora_alpha"]}))
    with pytest.raises(ValueError, match=r"logits that differ by .*; convert the run with --to=hf"):
        check_adapter(str(tmp_path / "base"), tmp_path / "run", tmp_path / "other_scale")


def test_a_folder_as_peft_saves_it_with_copies_of_the_base(tmp_path):
    """peft's own form of a tied adapter: both uses, and `ensure_weight_tying`."""
    c = TIED["embed_tokens"]
    write_peft(tmp_path, on_the_table(c), c)
    changed, adapters = read_peft(tmp_path, Checkpoint(tmp_path, "hf", c, {}))
    assert changed.config.tied and tree.paths(adapters).keys() == tree.paths(on_the_table(c)).keys()
