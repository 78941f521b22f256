"""Adapters of peft 0.21.2: what it computed with them, our model computes too, and they come out
again as they went in."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from research import tree
from research.interop.load import load, open_adapter, open_checkpoint
from research.interop.peft.config import read_config
from research.interop.peft.read import read_peft
from research.interop.peft.write import write_peft
from research.interop.storage.checkpoint import Checkpoint
from research.models.model import Model
from research.models.spec import abstract
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights.quantized import Quantized
from research.weights.rules import attach, is_leaf
from tests.families import FAMILIES
from tests.interop.adapter_golden import ADAPTERS, adapter, plain, tensors, write_adapter
from tests.interop.golden import inputs, real, write

# peft's own logits before and after merging differ by 7e-6 to 2e-5.
TOLERANCE = 5e-5


def loaded(name, tmp_path, **how):
    """The base with the adapter."""
    (tmp_path / "base").mkdir()
    base = write(str(adapter(name)["base"]), tmp_path / "base")
    return load(base, adapter=write_adapter(name, tmp_path / "adapter"), **how)


def compare(model, name):
    base, wanted = str(adapter(name)["base"]), adapter(name)
    if "classes" in wanted:
        got = model.model.class_logits(model.params, model.hidden(**inputs(base)))[:, 0]
        np.testing.assert_allclose(got, wanted["classes"], atol=TOLERANCE, rtol=0)
        return
    got = np.asarray(model.logits(**inputs(base)))
    np.testing.assert_allclose(
        got[real(base)], wanted["logits"][real(base)], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_pefts(name, tmp_path):
    compare(loaded(name, tmp_path), name)


# Those that come out as they went in: the rest adapt a module in another spelling, multiply biases,
# or hold tables that are the base's own now.
OTHERWISE = ("mixtral_lora", "gpt2_ia3", "lora_resized", "tied_whole")
SAME = [name for name in ADAPTERS if plain(name) and name not in OTHERWISE]


def adapters_of(name, tmp_path):
    """The adapters as read, and the config that goes with them."""
    (tmp_path / "base").mkdir()
    with open_checkpoint(write(str(adapter(name)["base"]), tmp_path / "base")) as checkpoint:
        changed, adapters = open_adapter(write_adapter(name, tmp_path / "adapter"), checkpoint)
        whole = {
            path: p
            for path, p in changed.parameters.items()
            if checkpoint.parameters.get(path) is not p
        }
        for path, parameter in whole.items() if name in ("bert_classifier", "lora_whole") else ():
            arrays = np.stack([parameter.read(index) for index in parameter.indices()])
            adapters = attach(adapters, tree.unflatten({path: arrays.reshape(parameter.shape)}))
        return adapters, changed.config


@pytest.mark.parametrize("name", SAME)
def test_what_is_read_is_written_as_it_was(name, tmp_path):
    adapters, config = adapters_of(name, tmp_path)
    (tmp_path / "again").mkdir()
    write_peft(tmp_path / "again", adapters, config)
    written, wanted = load_file(tmp_path / "again/adapter_model.safetensors"), tensors(name)
    wanted = {key: value for key, value in wanted.items() if "base_layer" not in key}
    assert written.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)
    again = read_config(tmp_path / "again")
    theirs = read_config(tmp_path / "adapter")
    for module in {key.removeprefix("base_model.model.").rsplit(".lora_")[0] for key in wanted}:
        assert again.rank_of(module) == theirs.rank_of(module)
        assert again.scale_of(module) == pytest.approx(
            theirs.scale_of(module), rel=1e-7
        )  # through a float32


def drawn(c, config):
    """Adapters of a model that are no longer the identity."""
    rng, wanted = (
        np.random.default_rng(0),
        abstract(lora_specs(Model(c).specs(), config), np.dtype("float32")),
    )
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), wanted)


# GPT-2's queries, keys and values have an A each here, which peft's fused layer has not.
FAMILIES_HERE = ["llama2_7b", "gpt2", "phi4_mini", "mixtral_8x7b", "bert_base", "t5_small"]


@pytest.mark.parametrize("name", FAMILIES_HERE)
def test_our_adapters_come_back_the_same(name, tmp_path):
    c = replace(FAMILIES[name], experts=min(FAMILIES[name].experts, 2))
    adapters = drawn(c, LoraConfig(rank=4, alpha=6.0, dropout=0.25, decompose=name == "llama2_7b"))
    adapters = jax.tree.map(
        lambda leaf: replace(leaf, scale=np.full_like(leaf.scale, 1.7)), adapters, is_leaf=is_leaf
    )
    write_peft(tmp_path, adapters, c)
    again = tree.paths(read_peft(tmp_path, Checkpoint(tmp_path, "hf", c, {}))[1], is_leaf)
    for path, ours in tree.paths(adapters, is_leaf).items():
        assert jax.tree.structure(again[path]) == jax.tree.structure(ours)
        for x, y in zip(jax.tree.leaves(again[path]), jax.tree.leaves(ours)):
            np.testing.assert_array_equal(x, y, err_msg=path)


def test_ranks_that_only_fill_up_are_left_out(tmp_path):
    c = FAMILIES["llama2_7b"]
    adapters = drawn(c, LoraConfig(rank=4, targets="query"))
    query = adapters["layers"]["attention"]["query"]
    query.a[0, :, 3:], query.b[0, 3:] = 0, 0
    write_peft(tmp_path, adapters, c)
    written = load_file(tmp_path / "adapter_model.safetensors")
    shapes = [
        written[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_A.weight"].shape
        for layer in (0, 1)
    ]
    assert (
        shapes == [(3, 32), (4, 32)]
        and read_config(tmp_path).rank_of("model.layers.0.self_attn.q_proj") == 3
    )


def test_nothing_is_merged_or_made_dense_when_it_is_read(tmp_path):
    model = loaded("lora", tmp_path)
    query = model.params["layers"]["attention"]["query"]
    base = load(tmp_path / "base").params["layers"]["attention"]["query"]
    np.testing.assert_array_equal(query.base, base)
    quantized = load(tmp_path / "base", adapter=tmp_path / "adapter", quantize="int8")
    on_codes = quantized.params["layers"]["attention"]["query"]
    assert isinstance(on_codes.base, Quantized)
    np.testing.assert_array_equal(on_codes.adapter.a, query.adapter.a)


@pytest.mark.parametrize("name", ["lora", "gpt2_lora", "ia3", "lora_whole", "prefix"])
def test_a_mesh_changes_nothing(name, tmp_path):
    model = loaded(name, tmp_path, mesh="fsdp:2,tensor:2,data:2")
    base, wanted = str(adapter(name)["base"]), adapter(name)["logits"]
    rows = {key: np.concatenate([value, value]) for key, value in inputs(base).items()}
    got = np.asarray(model.logits(**rows))[:2]
    np.testing.assert_allclose(got[real(base)], wanted[real(base)], atol=TOLERANCE, rtol=0)
    if name == "lora":
        adapted = model.params["layers"]["attention"]["query"].adapter
        # Each beside its weight [L, D, N, H], whose D is split for storage and N for use.
        assert adapted.a.sharding.spec == PartitionSpec(None, "fsdp", None)
        assert adapted.b.sharding.spec == PartitionSpec(None, None, "tensor", None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({'"bias": "none"': '"bias": "oft_only"'}, "bias='oft_only'; there are none, all, lora_o"),
        ({'"use_qalora": false': '"use_qalora": true'}, "use_qalora=True, which is not supported"),
        ({'"peft_type": "LORA"': '"peft_type": "HRA"'}, "peft_type='HRA'; .* merge_and_unload"),
        ({'"peft_type": "LORA"': '"peft_type": "VERA"'}, "has no vera_A .*save_projection=True"),
        (
            {'"init_lora_weights": true': '"init_lora_weights": "pissa"'},
            "init_lora_weights='pissa', which changes the base",
        ),
        ({'"layer_replication": null': '"layer_replication": [[0, 3]]'}, "a decoder of 2 that"),
        ({'"layer_replication": null': '"layer_replication": [2]'}, "wanted pairs .first layer"),
        ({'"r": 4': '"r": "4"'}, "r='4'; wanted a positive integer"),
        ({'"r": 4': '"r": 5'}, "has rank 4, its config says 5"),
        (
            {'"alpha_pattern": {': '"alpha_pattern": {"(": 1, '},
            "alpha_pattern has the key '\\(', which is no regex",
        ),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_its_field(changes, says, tmp_path):
    (tmp_path / "base").mkdir()
    folder = write_adapter("lora", tmp_path / "adapter", changes)
    with pytest.raises(ValueError, match=says):
        load(write("llama_gqa", tmp_path / "base"), adapter=folder)


@pytest.mark.parametrize(
    ("base", "name", "says"),
    [
        (
            "gpt2",
            "lora",
            r"the module model.layers.0.mlp.down_proj, which .* has not; load llama_gqa with it",
        ),
        (
            "llama_wide",
            "lora",
            r"self_attn.* got shape \[.*\], wanted \[.*\].*; load llama_gqa with it",
        ),
        ("bert_mlm", "prompt", "supported for decoders, the model is an encoder"),
        ("llama_rope3", "gpt2_prefix", r"has the shape \[3, 128\], the model wants \[n, 64\]"),
    ],
)
def test_an_adapter_of_another_model_is_named(base, name, says, tmp_path):
    (tmp_path / "base").mkdir()
    with pytest.raises(ValueError, match=says):
        load(write(base, tmp_path / "base"), adapter=write_adapter(name, tmp_path / "adapter"))


def test_what_is_no_adapter_is_refused(tmp_path):
    (tmp_path / "base").mkdir()
    base, folder = (
        write("llama_gqa", tmp_path / "base"),
        write_adapter("lora", tmp_path / "adapter"),
    )
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickled adapters are never read"):
        load(base, adapter=folder)
    with pytest.raises(ValueError, match="base is no adapter: wanted a folder of peft's"):
        load(base, adapter=base)
    with pytest.raises(
        ValueError, match="no adapter that is layers/attention/prefix_key, prompt/table"
    ):
        prompt = {"prompt": {"table": np.zeros((2, 32), np.float32)}}
        write_peft(
            tmp_path,
            prompt | {"layers": {"attention": {"prefix_key": np.zeros((2, 2, 4, 8))}}},
            FAMILIES["gpt2"],
        )


def test_an_adapters_tables_may_have_fewer_rows_than_the_base(tmp_path):
    base = write("llama_gqa", tmp_path)
    with open_checkpoint(base) as checkpoint:
        rows = checkpoint.config.vocab_size - 8
        folder = write_adapter("lora_resized", tmp_path / "adapter")
        cut = {
            key: value[:rows] if value.shape[0] > rows else value
            for key, value in tensors("lora_resized").items()
        }
        save_file(cut, folder / "adapter_model.safetensors")
        changed, _ = open_adapter(folder, checkpoint)
    assert changed.config.vocab_size == rows
    assert changed.parameters["head/table"].read(()).shape[0] == rows


def test_an_adapter_with_tables_of_two_sizes_is_refused(tmp_path):
    folder = write_adapter("lora_resized", tmp_path / "adapter")
    changed = {
        key: x[:-1] if "embed_tokens" in key else x for key, x in tensors("lora_resized").items()
    }
    save_file(changed, folder / "adapter_model.safetensors")
    (tmp_path / "base").mkdir()
    with open_checkpoint(write("llama_gqa", tmp_path / "base")) as checkpoint:
        with pytest.raises(ValueError, match=r"tables of \d+ and of \d+ rows; save it again"):
            open_adapter(folder, checkpoint)
