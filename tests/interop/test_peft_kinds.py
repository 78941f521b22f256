"""peft's other kinds of adapters: what is read as LoRA trains on and is written as LoRA, what is no
leaf is merged into its weights as they are read. Their logits are in test_peft.py."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research import tree
from research.interop.convert import convert
from research.interop.huggingface.families.table import family_of
from research.interop.load import load, open_adapter, open_checkpoint
from research.interop.peft.replicated import replicated
from research.interop.peft.write import write_peft
from research.interop.storage.modules import modules
from research.weights.quantized import Quantized
from research.weights.rules import is_leaf
from tests.interop.adapter_golden import adapter, tensors, write_adapter
from tests.interop.golden import inputs, real, write
from tests.interop.test_merged import TOLERANCE, folders


@pytest.mark.parametrize(("name", "modules"), [("adalora", 3), ("vera", 2), ("gpt2_vera", 2)])
def test_products_of_two_are_written_as_lora(name, modules, tmp_path, caplog):
    base, folder = folders(name, tmp_path)
    (tmp_path / "again").mkdir()
    with open_checkpoint(base) as checkpoint:
        changed, adapters = open_adapter(folder, checkpoint)
        assert changed.parameters == checkpoint.parameters
        assert f"is read as low-rank adapters of {modules} modules" in caplog.text
        write_peft(tmp_path / "again", adapters, changed.config)
        again = open_adapter(tmp_path / "again", checkpoint)[1]
    written = json.loads((tmp_path / "again/adapter_config.json").read_text())
    assert written["peft_type"] == "LORA"
    ours = tree.paths(adapters, is_leaf)
    for path, leaf in tree.paths(again, is_leaf).items():
        np.testing.assert_array_equal(leaf.a, ours[path].a)
        np.testing.assert_array_equal(leaf.b, ours[path].b)
        # The scale goes through alpha and back, which may round once.
        np.testing.assert_allclose(leaf.scale, ours[path].scale, rtol=1e-6)


@pytest.mark.parametrize("name", ["loha", "lokr", "boft"])
def test_what_is_no_leaf_is_merged_and_says_so(name, tmp_path, caplog):
    base, folder = folders(name, tmp_path)
    with open_checkpoint(base) as checkpoint:
        changed, adapters = open_adapter(folder, checkpoint)
        assert adapters == {}
        assert "merged into the weights of 2 modules as they are read" in caplog.text
        query = "layers/attention/query"
        before, after = (one.parameters[query] for one in (checkpoint, changed))
        np.testing.assert_array_equal(before.read((0,)), after.read((0,)))
        assert np.abs(before.read((1,)) - after.read((1,))).max() > 1e-3
    # The weight may be quantized then, with the update in it.
    quantized = load(base, adapter=folder, quantize="int8")
    assert isinstance(quantized.params["layers"]["attention"]["query"], Quantized)


@pytest.mark.parametrize(
    ("name", "to"), [("loha", "gguf"), ("llama_lora_bias", "hf"), ("lora_tokens", "gguf")]
)
def test_each_merges_into_any_target(name, to, tmp_path):
    base, folder = folders(name, tmp_path)
    convert(base, tmp_path / "merged", to, adapter=folder)
    got = np.asarray(load(tmp_path / "merged").logits(**inputs("llama_gqa")))
    where = real("llama_gqa")
    np.testing.assert_allclose(got[where], adapter(name)["logits"][where], atol=TOLERANCE, rtol=0)


def test_a_merge_keeps_the_type_of_the_weights(tmp_path):
    (tmp_path / "base").mkdir()
    base = write("llama_bfloat16", tmp_path / "base")
    folder = write_adapter("oft", tmp_path / "adapter")
    convert(base, tmp_path / "merged", "hf", adapter=folder)
    stored = load_file(tmp_path / "merged/model.safetensors")
    assert {str(x.dtype) for x in stored.values()} == {"bfloat16"}
    name = "model.layers.1.self_attn.q_proj.weight"
    assert np.any(stored[name] != load_file(base / "model.safetensors")[name])


def test_a_model_of_repeated_layers_shares_the_base(tmp_path):
    base, folder = folders("replicated", tmp_path)
    with open_checkpoint(base) as checkpoint:
        changed, _ = open_adapter(folder, checkpoint)
        assert changed.config == replace(checkpoint.config, layers=4)
        for layer, source in enumerate((0, 1, 0, 1)):
            read = [one.parameters["layers/mlp/up"].read for one in (changed, checkpoint)]
            np.testing.assert_array_equal(read[0]((layer,)), read[1]((source,)))
        other = replicated(checkpoint, (1, 1, 0)).parameters["layers/mlp/up"]
        assert other.shape[0] == 3
        np.testing.assert_array_equal(other.read((1,)), read[1]((1,)))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("lora_tokens", {"5": "96"}, "for the tokens .* of 96"),
        ("oft", {'"coft": false': '"coft": 1'}, "coft=1; wanted a value of type bool"),
        ("loha", {'"LOHA"': '"LOKR"'}, "proj has hada_w1_a, .*; wanted lokr_w1_a, lokr_w1_b"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, changes, says, tmp_path):
    (tmp_path / "base").mkdir()
    base = write("llama_gqa", tmp_path / "base")
    with pytest.raises(ValueError, match=says):
        load(base, adapter=write_adapter(name, tmp_path / "adapter", changes))


def test_several_butterfly_factors_are_refused(tmp_path):
    base, folder = folders("boft", tmp_path)
    twice = {
        key: np.concatenate([x, x]) if key.endswith("boft_R") else x
        for key, x in tensors("boft").items()
    }
    save_file(twice, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has boft_R .*several butterfly factors"):
        load(base, adapter=folder)


def test_a_module_of_several_weights_is_changed_as_one(tmp_path):
    (tmp_path / "base").mkdir()
    base, folder = (
        write("phi3", tmp_path / "base"),
        write_adapter("lokr_whole", tmp_path / "adapter"),
    )
    before = load_file(base / "model.safetensors")
    name = "model.layers.1.self_attn.qkv_proj.weight"
    rows, columns = before[name].shape
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 2)), rng.normal(size=(rows // 4, columns // 2))
    factors = {"lokr_w1": first.astype(np.float32), "lokr_w2": second.astype(np.float32)}
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    save_file({f"{stem}.{k}": x for k, x in factors.items()}, folder / "adapter_model.safetensors")
    convert(base, tmp_path / "merged", "hf", adapter=folder)
    after = load_file(tmp_path / "merged/model.safetensors")
    # Of the golden: alpha 8, rank 16.
    update = np.float32(0.5) * np.kron(factors["lokr_w1"], factors["lokr_w2"])
    np.testing.assert_allclose(after[name], before[name] + update, atol=1e-6)
    assert all(np.array_equal(after[other], x) for other, x in before.items() if other != name)


def test_experts_beside_a_shared_one_are_not_written_for_peft(tmp_path):
    base, folder = folders("qwen_experts", tmp_path)
    with open_checkpoint(base) as checkpoint:
        changed, adapters = open_adapter(folder, checkpoint)
    with pytest.raises(ValueError, match=r"and not .*mlp.experts.0.\w+ alone; convert .*--to=hf"):
        write_peft(tmp_path, adapters, changed.config)


@pytest.mark.parametrize("name", ["olmo2", "olmoe"])
def test_norms_over_heads_are_no_modules(name, tmp_path):
    with open_checkpoint(write(name, tmp_path)) as checkpoint:
        known = modules(checkpoint.config, family_of(checkpoint.config))
    assert "model.layers.0.self_attn.q_proj" in known
    assert not [module for module in known if "norm" in module]
