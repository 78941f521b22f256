"""DeepSeek-V2 and V3: what is particular about their files, and about latents among adapters, codes
and devices."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from research import tree
from research.compress.calibration import calibrate, layer_errors, windows
from research.data.tokenizers import load_tokenizer
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.interop.certificate_lines import describe
from research.interop.convert import convert
from research.interop.huggingface.families.table import FAMILIES as HF
from research.interop.load import load, open_checkpoint
from research.interop.peft.read import read_peft
from research.interop.peft.write import write_peft
from research.interop.storage.checkpoint import Checkpoint
from research.models.model import Model
from research.models.spec import abstract, initialize
from research.models.stack import layer_count
from research.objectives.choose import make_objective
from research.parallel.mesh import place_batch
from research.run.program import make_program
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights.rules import is_leaf, quantize
from tests.configs import experiment
from tests.families import FAMILIES, random_batch
from tests.interop.golden import golden, inputs, real, tensors, write

NAMES = ("deepseek_v2_lite", "deepseek_v2", "deepseek_v3")


def config(name, **changes):
    return {**json.loads(str(golden(name)["config_v4"])), **changes}


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_comes_back_bit_by_bit(name, tmp_path):
    (tmp_path / "source").mkdir()
    certificate = convert(write(name, tmp_path / "source"), tmp_path / "again", to="hf")
    trip, theirs = certificate["round_trip"], tensors(name)
    assert trip["bit_equal"] == trip["tensors"] == len(theirs)
    written = load_file(tmp_path / "again/model.safetensors")
    assert written.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_array_equal(written[key], values, err_msg=key)
    # In the spelling that DeepSeek's own code reads too.
    again = json.loads((tmp_path / "again/config.json").read_text())
    scales = {"mscale": 1.0, "mscale_all_dim": 1.0}
    assert name != "deepseek_v3" or scales.items() <= again["rope_scaling"].items()


def test_what_predicts_further_tokens_is_left_out_with_one_line_and_a_count(tmp_path):
    names = ("eh_proj", "enorm", "hnorm", "self_attn.q_a_proj", "mlp.gate")
    more = {f"model.layers.3.{name}.weight": np.ones(3, np.float32) for name in names}
    (tmp_path / "source").mkdir()
    source = write("deepseek_v3", tmp_path / "source", more=more)
    lines = [one for one in describe(convert(source, tmp_path / "again")) if "needed" in one]
    [line] = lines
    assert "5 tensors such as model.layers.3." in line and "token after the next" in line
    # Layers behind those are of no known use.
    strange = {"model.layers.4.enorm.weight": np.ones(3, np.float32)}
    (tmp_path / "strange").mkdir()
    with pytest.raises(ValueError, match="no place for"):
        open_checkpoint(write("deepseek_v3", tmp_path / "strange", more=strange))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob=True"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method='noaux_tc'; there are greedy"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "only scoring_func='softmax'"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias=True"),
        ("deepseek_v2", {"num_experts_per_tok": 5}, "experts_per_token=5 must be in 1..4"),
        ("deepseek_v3", {"n_group": 3}, "must be a multiple of model.route_groups=3"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave=False"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "only num_key_value_heads=4"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq=2"),
        ("deepseek_v3", {"n_shared_experts": None}, "n_shared_experts"),
        (
            "deepseek_v3",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}},
            "only 'yarn'",
        ),
    ],
)
def test_what_no_layer_here_computes_is_refused(name, changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        HF["deepseek"].read_config(config(name, **changes), set())
    assert "\n" not in str(caught.value)


def test_a_model_without_experts_has_one_stack_and_its_config_comes_back():
    c = HF["deepseek"].read_config(config("deepseek_v3", first_k_dense_replace=3), set())
    assert (c.experts, c.dense_layers, c.d_ff) == (0, 0, 40)
    again = HF["deepseek"].write_config(c)
    assert HF["deepseek"].read_config(again, set()) == c


def test_adapters_of_all_matrices_come_back_from_pefts_format(tmp_path):
    # peft's modules of keys and values hold two of our matrices each.
    c = FAMILIES["deepseek_v3"]
    specs = lora_specs(Model(c).specs(), LoraConfig(rank=2))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), abstract(specs, np.dtype("float32"))
    )
    adapters = jax.tree.map(
        lambda leaf: replace(leaf, scale=np.full_like(leaf.scale, 0.5)), drawn, is_leaf=is_leaf
    )
    write_peft(tmp_path, adapters, c)
    again = tree.paths(read_peft(tmp_path, Checkpoint(tmp_path, "hf", c, {}))[1], is_leaf)
    ours = tree.paths(adapters, is_leaf)
    found = {path.removeprefix("dense/").split("/")[2] for path in ours if "attention" in path}
    assert found == {"query_down", "query", "kv_down", "rotary_key", "key_up", "value_up", "out"}
    assert again.keys() == ours.keys()
    for path, leaf in ours.items():
        for x, y in zip(jax.tree.leaves(again[path]), jax.tree.leaves(leaf)):
            np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.slow
def test_codes_of_latents_write_from_the_cache_what_they_write_without(tmp_path):
    loaded = load(write("deepseek_v3", tmp_path), quantize="int8")
    prompt = golden("deepseek_v3")["ids"][0, :8].tolist()
    tokenizer = replace(load_tokenizer("bytes"), eos_id=None, pad_id=None)
    greedy = SamplingConfig(temperature=0, max_tokens=6)
    [written] = generate(loaded.model, loaded.params, tokenizer, [prompt], greedy)
    text = np.array([[*prompt, *written.token_ids[:-1]]], np.int32)
    logits_TV = np.asarray(loaded.logits(text))[0, len(prompt) - 1 :]
    for logits_V, token in zip(logits_TV, written.token_ids, strict=True):
        # The written one is the likeliest but for float order.
        assert logits_V.max() - logits_V[token] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp:2,expert:2,tensor:2", "fsdp:2,context:2,tensor:2"])
def test_a_mesh_changes_nothing(mesh, tmp_path):
    loaded = load(write("deepseek_v3", tmp_path), mesh=mesh)
    rows = {key: np.concatenate([value, value]) for key, value in inputs("deepseek_v3").items()}
    got, wanted = np.asarray(loaded.logits(**rows))[:2], golden("deepseek_v3")["logits"]
    seen = real("deepseek_v3")
    np.testing.assert_allclose(got[seen], wanted[seen], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_training_keeps_the_routers_bias_and_moves_all_else():
    e = experiment("pretrain", "model=deepseek_v3,smoke", **{"data.sequence_length": 16})
    e = replace(e, model=replace(e.model, dropout=0.0))
    p = make_program(e, make_objective(e.objective, load_tokenizer("bytes")))
    with jax.set_mesh(p.mesh):
        state = p.init()
        before = jax.tree.map(lambda x: np.asarray(x) + 0.0, tree.paths(state.trainable))
        bias = np.linspace(-1, 1, e.model.experts, dtype=np.float32)[None]
        mlp = state.trainable["layers"]["mlp"]
        mlp["router_bias"] = jnp.broadcast_to(bias, mlp["router_bias"].shape) + 0.0
        assert layer_count(state.trainable["dense"]["layers"]) == 1
        # The first step of a warmup may have a learning rate of 0.
        for seed in range(3):
            batch = place_batch(random_batch(8, 16, seed), p.mesh, p.rules, 8)
            state, metrics = p.train_step(state, batch)
    assert np.isfinite(metrics["loss"])
    after = tree.paths(state.trainable)
    np.testing.assert_array_equal(after.pop("layers/mlp/router_bias"), bias)
    still = [path for path, w in after.items() if np.array_equal(w, before[path])]
    assert still == []


@pytest.mark.slow
def test_the_error_of_codes_is_that_of_each_layer_of_both_stacks():
    model = Model(FAMILIES["deepseek_v3"])
    specs = model.specs()
    params = initialize(jax.random.key(0), specs, jnp.float32)
    batches = windows(np.arange(32) % 96, 16, 2)
    codes = quantize(params, specs, [("dense/.*/mlp/(gate|up|down)", "int8"), (".*", None)])
    errors = layer_errors(model, params, {"dense": codes}, batches)["dense"]
    assert errors.shape == (3,) and 0 < errors[0] < 0.1 and not errors[1:].any()
    with pytest.raises(ValueError, match="dense_layers=1.*--method=rtn"):
        calibrate(model, params, [("layers/attention/out", "int8"), (".*", None)], batches, "gptq")
