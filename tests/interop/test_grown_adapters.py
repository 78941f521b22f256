"""An adapter of a run with more tokens than its base takes the grown tables along."""

import json
from dataclasses import replace

import numpy as np
import pytest

from research.data.tokenizers.tokenizer import RECORD
from research.interop.convert import export_adapter
from research.interop.load import load, open_adapter, open_checkpoint
from research.interop.native import write_native
from research.interop.peft.tokens import grown_tables
from research.interop.peft.write import write_peft
from research.interop.storage.grow import fit_rows
from research.weights.lora import LoraAdapter
from tests.checkpoints import save_checkpoint
from tests.configs import experiment
from tests.families import FAMILIES
from tests.interop.test_grow import SMALL
from tests.interop.test_tied_adapters import logits_with, on_the_table
from tests.runs import started_run

NEW = 4
BASES = {
    "untied": replace(FAMILIES["llama2_7b"], layers=1),
    "tied": replace(FAMILIES["llama2_7b"], tied=True, layers=1),
    "wte": replace(FAMILIES["gpt2"], layers=1),
}


def on_queries(c):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(1, c.d_model, 4)), rng.normal(size=(1, 4, c.heads, c.head_size))
    query = LoraAdapter(np.float32(a), np.float32(b), np.full(1, 0.1, np.float32))
    return {"layers": {"attention": {"query": query}}}


ADAPTERS = {
    "frozen": on_queries,
    "adapted": on_the_table,
    "whole": lambda c: on_the_table(c, whole=True),
}
CASES = [("untied", "frozen"), *((kind, how) for kind in ("tied", "wte") for how in ADAPTERS)]


def write_grown(kind, how, folder):
    """`base`, and in `peft` an adapter for it with more tokens: (ids, its logits on them)."""
    c = BASES[kind]
    save_checkpoint(folder / "base", c)
    larger = replace(c, vocab_size=c.vocab_size + NEW)
    adapters = ADAPTERS[how](larger)
    for name in ("grown", "peft"):
        (folder / name).mkdir()
    with open_checkpoint(folder / "base") as base:
        write_native(fit_rows(base, larger), folder / "grown")
        write_peft(folder / "peft", adapters, larger, grown=grown_tables(base, larger))
    ids = np.array([[5, 70, 11, c.vocab_size, 33, c.vocab_size + NEW - 1]])
    return ids, logits_with(load(folder / "grown"), adapters, ids)


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_the_folder_grows_the_base(kind, how, tmp_path):
    ids, wanted = write_grown(kind, how, tmp_path)
    again = load(tmp_path / "base", adapter=tmp_path / "peft")
    # Sums of an adapter and its weight in another order.
    np.testing.assert_allclose(again.logits(ids), wanted, atol=1e-5)


def lora_run(folder, **changes):
    """A run of adapters on a smaller base."""
    save_checkpoint(folder / "small", SMALL)
    rows = [json.dumps({"text": f"alpha beta {n} " * 5}) for n in range(120)]
    (folder / "texts.jsonl").write_text("\n".join(rows))
    settings = {"data.sequence_length": 16, "data.batch_size": 8, **changes}
    settings |= {"model.vocab_size": 292, "lora.targets": "out"}
    arg = f"task=causal_lm,data={folder / 'texts.jsonl'},method=lora,smoke"
    started_run(experiment("finetune", arg, init=str(folder / "small"), **settings), folder / "run")


def test_a_runs_adapters_come_with_its_tokens(tmp_path):
    lora_run(tmp_path)
    made = export_adapter(tmp_path / "run", tmp_path / "peft")
    assert made["bit_equal"] == made["values"] and made["logit_difference"] < 1e-5
    assert any("call resize_token_embeddings(292) of the base" in line for line in made["notes"])
    assert load(tmp_path / "small", adapter=tmp_path / "peft").config.vocab_size == 292
    assert (tmp_path / "peft" / RECORD).is_file()


def test_what_a_run_trained_whole_beside_its_adapters_is_on_the_base_too(tmp_path):
    lora_run(tmp_path, **{"tune.also": "layers/mlp_norm/scale"})
    with open_checkpoint(tmp_path / "small") as base:
        changed, adapters = open_adapter(tmp_path / "run", base)
        norms = [one.parameters["layers/mlp_norm/scale"] for one in (base, changed)]
        assert norms[0] is not norms[1]
    assert "mlp_norm" not in adapters["layers"]
    assert load(tmp_path / "small", adapter=tmp_path / "run").config.vocab_size == 292


def test_positions_that_peft_cannot_grow_are_refused_with_the_way_out(tmp_path):
    lora_run(tmp_path, **{"model.max_length": 32})
    with pytest.raises(ValueError, match="32 learned positions .* 16.* use --to=hf, which merges"):
        export_adapter(tmp_path / "run", tmp_path / "peft")


def classifier_run(folder):
    """A run of adapters and a new classifier, on a base that only predicts words."""
    base = replace(FAMILIES["bert_base"], vocab_size=292, labels=0)
    save_checkpoint(folder / "words", base)
    rows = [
        json.dumps({"text": f"film {n}", "label": "bad good".split()[n % 2]}) for n in range(80)
    ]
    (folder / "labelled.jsonl").write_text("\n".join(rows))
    arg = f"task=classification,data={folder / 'labelled.jsonl'},method=lora,smoke"
    settings = {"data.sequence_length": 16, "data.batch_size": 8}
    e = experiment("finetune", arg, init=str(folder / "words"), **settings)
    return started_run(e, folder / "run")


def test_a_classifier_goes_with_its_adapters(tmp_path):
    classifier_run(tmp_path)
    made = export_adapter(tmp_path / "run", tmp_path / "peft")
    assert made["bit_equal"] == made["values"] and made["logit_difference"] < 1e-5
    classes = "num_labels=2 and id2label={0: 'bad', 1: 'good'}"
    assert any(classes in line for line in made["notes"])
    assert not any("generation ends" in line for line in made["notes"])
    for adapter in ("run", "peft"):  # also as --adapter of a command
        assert load(tmp_path / "words", adapter=tmp_path / adapter).config.labels == 2
