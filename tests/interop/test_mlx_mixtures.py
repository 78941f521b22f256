"""Folders of MLX whose experts, or matrices of heads, lie in one tensor: read as those of
transformers' classes, quantized or not, each module by its own settings."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research import tree
from research.interop.convert import convert
from research.interop.load import load, open_checkpoint
from research.weights.quantized import is_quantized
from tests.families import FAMILIES
from tests.interop import quantized_writers as writers
from tests.interop.test_gguf_encoders import write
from tests.interop.test_mxfp4 import packed  # noqa: F401

EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.weight")
MLX_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
QWEN3 = replace(FAMILIES["qwen3_8b"], experts=4)
MIXTURES = {
    "mixtral": FAMILIES["mixtral_8x7b"],
    "qwen2_moe": FAMILIES["qwen1.5_moe_a2.7b"],
    "qwen3_moe": QWEN3,
    "olmoe": replace(QWEN3, query_norm_over="heads", normalized_routes=False),
    "deepseek_v3": FAMILIES["deepseek_v3"],
}
DOWN = {"group_size": 32, "bits": 8}  # of the down-projections, which have settings of their own
REST = {"group_size": 16, "bits": 4}


def stacked(tensors, config):
    """The tensors as MLX's classes have them: {name: [E, F, D] of experts or of heads}."""
    found, experts = {}, {}
    for name, x in tensors.items():
        if match := EXPERT.fullmatch(name):
            layer, number, matrix = match.groups()
            stack = f"{layer}.switch_mlp.{MLX_NAMES.get(matrix, matrix)}.weight"
            experts.setdefault(stack, {})[int(number)] = x
        elif name.endswith("kv_b_proj.weight"):
            heads, u = config["num_attention_heads"], config["qk_nope_head_dim"]
            parts = x.reshape(heads, -1, x.shape[-1])
            layer = name.removesuffix(".kv_b_proj.weight")
            found[f"{layer}.embed_q.weight"] = parts[:, :u].swapaxes(1, 2)
            found[f"{layer}.unembed_out.weight"] = parts[:, u:]
        else:
            found[name] = x
    return found | {name: np.stack([x[e] for e in sorted(x)]) for name, x in experts.items()}


def as_mlx(source, folder, quantized):
    """A folder of transformers as MLX has it; returns the values of its experts by stack."""
    config, settings = json.loads((source / "config.json").read_text()), dict(REST)
    rng, written, values = np.random.default_rng(0), {}, {}
    folder.mkdir()
    for key, x in stacked(load_file(source / "model.safetensors"), config).items():
        if not quantized or ".switch_mlp." not in key:
            written[key] = np.ascontiguousarray(x)
            continue
        own = DOWN if "down_proj" in key else REST
        if own is DOWN:
            settings[key.removesuffix(".weight")] = DOWN
        made = [writers.mlx(rng, *one.shape, own["bits"], own["group_size"]) for one in x]
        for part in made[0][0]:
            stack = np.stack([tensors[part] for tensors, _ in made])
            written[key.removesuffix("weight") + part] = stack
        values[key] = np.stack([value for _, value in made])
    config |= {"quantization": settings} if quantized else {}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(written, folder / "model.safetensors")
    return values


@pytest.mark.parametrize("name", MIXTURES)
def test_an_unquantized_folder_is_the_same_model(name, tmp_path):
    as_mlx(write(MIXTURES[name], tmp_path / "hf"), tmp_path / "mlx", quantized=False)
    ours, theirs = (load(tmp_path / folder) for folder in ("mlx", "hf"))
    assert ours.config == theirs.config
    for path, leaf in tree.paths(theirs.params).items():
        np.testing.assert_array_equal(tree.paths(ours.params)[path], leaf, err_msg=path)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_leaves_each_by_its_own_settings(name, tmp_path, caplog):
    folder = tmp_path / "mlx"
    values = as_mlx(write(MIXTURES[name], tmp_path / "hf"), folder, quantized=True)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.stored_as == "MLX, 4 bits in groups of 16"
        first = checkpoint.config.dense_layers
        for matrix, path, kept in (
            ("gate_proj", "gate", "offset4"),
            ("up_proj", "up", "offset4"),
            ("down_proj", "down", "offset8"),
        ):
            [wanted] = [
                x for key, x in values.items() if f"layers.{first + 1}." in key and matrix in key
            ]
            codes = checkpoint.codes[f"layers/mlp/{path}"]
            for expert in (0, checkpoint.config.experts - 1):
                dense = checkpoint.parameters[f"layers/mlp/{path}"].read((1, expert))
                np.testing.assert_array_equal(dense, wanted[expert].T)
                leaf = codes.read((1, expert))
                assert leaf.format == kept
                np.testing.assert_array_equal(leaf.dense(), wanted[expert].T)
    assert "read dense" not in caplog.text


def gpt_oss_as_mlx(folder, target):
    """A folder of gpt-oss in MXFP4 as MLX has it: gate and up apart, words of 32 bits."""
    tensors = {}
    for name, x in load_file(folder / "model.safetensors").items():
        if match := re.fullmatch(r"(.*)\.(gate_up|down)_proj_(blocks|scales|bias)", name):
            part = {"blocks": "weight"}.get(match[3], match[3])
            x = x.reshape(*x.shape[:2], -1).view(np.uint32) if part == "weight" else x
            halves = {"gate": x[:, ::2], "up": x[:, 1::2]} if match[2] == "gate_up" else {"down": x}
            for half, y in halves.items():
                tensors[f"{match[1]}.{half}_proj.{part}"] = np.ascontiguousarray(y)
        else:
            tensors[name] = x
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    settings = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    (target / "config.json").write_text(json.dumps(config | {"quantization": settings}))
    save_file(tensors, target / "model.safetensors", metadata={"format": "mlx"})


def test_gpt_oss_has_the_codes_of_its_published_folder(packed, tmp_path):  # noqa: F811
    (tmp_path / "mlx").mkdir()
    gpt_oss_as_mlx(packed, tmp_path / "mlx")
    ours, theirs = (tree.paths(load(f).params, is_quantized) for f in (tmp_path / "mlx", packed))
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        if is_quantized(leaf):
            assert ours[path].format == "mxfp4"
            np.testing.assert_array_equal(ours[path].codes, leaf.codes)
            np.testing.assert_array_equal(ours[path].scale, leaf.scale)
        else:
            np.testing.assert_array_equal(ours[path], leaf, err_msg=path)
    # And it is written as the published folder is.
    convert(tmp_path / "mlx", tmp_path / "again", "hf", certified=False)
    before, after = (load_file(f / "model.safetensors") for f in (packed, tmp_path / "again"))
    for name, x in before.items():
        assert x.tobytes() == after[name].tobytes(), name


MODES = {
    "nvfp4": ({"group_size": 16, "bits": 4}, "mxfp4"),
    "mxfp8": ({"group_size": 32, "bits": 8}, "fp8_e4m3"),
}


@pytest.mark.parametrize("mode", MODES)
def test_codes_that_are_floats_compute_as_what_they_stand_for(mode, tmp_path):
    settings, kept = MODES[mode]
    shape = dict(d_model=64, d_ff=64, head_size=16, vocab_size=96)
    source = write(replace(FAMILIES["llama2_7b"], **shape), tmp_path / "hf")
    rng, tensors, values = np.random.default_rng(0), {}, {}
    for name, x in load_file(source / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            tensors[name] = x
            continue
        how = dict(bits=settings["bits"], group=settings["group_size"])
        made, values[name] = writers.mlx_floats(rng, *x.shape, **how, exponents=mode != "nvfp4")
        tensors |= {name.removesuffix("weight") + part: array for part, array in made.items()}
    folder = tmp_path / "mlx"
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    config |= {"quantization": settings | {"mode": mode}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    ours = load(folder)
    dense = jax.tree.map(
        lambda x: x.dense() if is_quantized(x) else x, ours.params, is_leaf=is_quantized
    )
    exact = replace(ours, params=dense)
    assert ours.params["layers"]["mlp"]["down"].format == kept
    wanted = values["model.layers.1.mlp.down_proj.weight"].T
    np.testing.assert_array_equal(dense["layers"]["mlp"]["down"][1], wanted)
    ids = np.arange(12)[None]
    # Sums in another order.
    np.testing.assert_allclose(ours.logits(ids), exact.logits(ids), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("quantized", [False, True])
def test_gpt_oss_in_other_types_is_read_dense(quantized, packed, tmp_path):  # noqa: F811
    convert(packed, tmp_path / "dense", "hf", "float32", certified=False)
    (tmp_path / "mlx").mkdir()
    config, rng, tensors = tmp_path / "dense/config.json", np.random.default_rng(0), {}
    settings, values = {"quantization": REST} if quantized else {}, {}
    for name, x in load_file(tmp_path / "dense/model.safetensors").items():
        match = re.fullmatch(r"(.*)\.(gate_up|down)_proj(_bias)?", name)
        if not match:
            tensors[name] = x
            continue
        halves = {"gate": x[..., ::2], "up": x[..., 1::2]}
        for half, y in (halves if match[2] == "gate_up" else {"down": x}).items():
            module = f"{match[1]}.{half}_proj"
            if match[3]:
                tensors[f"{module}.bias"] = np.ascontiguousarray(y)
                continue
            values[half] = y = np.ascontiguousarray(y.swapaxes(1, 2))
            if not quantized:
                tensors[f"{module}.weight"] = y
                continue
            made = [writers.mlx(rng, *one.shape) for one in y]
            values[half] = np.stack([value for _, value in made])
            for part in made[0][0]:
                tensors[f"{module}.{part}"] = np.stack([parts[part] for parts, _ in made])
    (tmp_path / "mlx/config.json").write_text(json.dumps(json.loads(config.read_text()) | settings))
    save_file(tensors, tmp_path / "mlx/model.safetensors")
    with open_checkpoint(tmp_path / "mlx") as checkpoint:
        for half, wanted in values.items():  # of the last layer
            parameter = checkpoint.parameters[f"layers/mlp/{half}"]
            np.testing.assert_array_equal(parameter.read((1, 2)), wanted[2].T)


def test_a_stack_of_no_known_use_is_named(tmp_path):
    as_mlx(write(MIXTURES["mixtral"], tmp_path / "hf"), tmp_path / "mlx", quantized=True)
    file = tmp_path / "mlx/model.safetensors"
    tensors = load_file(file)
    stack = next(name for name in tensors if name.endswith("switch_mlp.up_proj.scales"))
    extra = {"model.layers.0.strange.scales": tensors[stack]}
    extra |= {f"model.layers.0.strange.{part}": tensors[stack] for part in ("weight", "biases")}
    save_file(tensors | extra, file)
    with pytest.raises(ValueError, match="strange holds 3 axes .*take the model that it was made"):
        open_checkpoint(tmp_path / "mlx")
