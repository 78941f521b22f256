"""Experts in MXFP4: their numbers, the leaves that hold them, and the way back."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.data.tokenizers import load_tokenizer
from research.files import building
from research.interop.convert import convert
from research.interop.huggingface import folder as hf
from research.interop.load import load, open_checkpoint
from research.run.opened import open_run
from research.weights.quantized import is_quantized
from tests.configs import experiment
from tests.families import FAMILIES, random_batch
from tests.interop.memory import in_memory, random_params

pytestmark = pytest.mark.usefixtures("small_library")

C = replace(FAMILIES["gpt_oss_20b"], layers=2, d_ff=32)
GATE_UP, DOWN = "model.layers.1.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"
# Open Compute Project, MX specification 1.0, table 5, by bit pattern.
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.fixture
def packed(tmp_path):
    """A folder with random codes, and scales of which some are the least and large ones."""
    with building(tmp_path / "packed") as folder:
        hf.write_folder(in_memory(C, random_params(C, "bfloat16")), folder, dtype="mxfp4")
    rng, file = np.random.default_rng(0), tmp_path / "packed/model.safetensors"
    arrays = load_file(file)
    for name, stored in arrays.items():
        if name.endswith("_blocks"):
            arrays[name] = rng.integers(0, 256, stored.shape, np.uint8)
        if name.endswith("_scales"):
            arrays[name] = rng.integers(122, 126, stored.shape, np.uint8)
    arrays[GATE_UP + "_scales"][0, :2, 0] = 0, 160
    save_file(arrays, file, metadata={"format": "pt"})
    return tmp_path / "packed"


def numbers(blocks, scales):
    """The tensor [E, I, O] of blocks and scales, number by number."""
    E, O, g = scales.shape
    dense = np.zeros((E, 32 * g, O))
    for e, o, block in np.ndindex(E, O, g):
        for place, byte in enumerate(blocks[e, o, block].tolist()):
            for half, code in enumerate((byte % 16, byte // 16)):
                sign = -1.0 if code >= 8 else 1.0
                value = sign * E2M1[code % 8] * 2.0 ** (int(scales[e, o, block]) - 127)
                dense[e, 32 * block + 2 * place + half, o] = value
    return dense


def test_numbers_are_the_specifications_dense_and_as_leaves(packed):
    arrays = load_file(packed / "model.safetensors")
    gate_up, down = (numbers(arrays[n + "_blocks"], arrays[n + "_scales"]) for n in (GATE_UP, DOWN))
    loaded = load(packed)
    for name, layer, wanted in (
        ("gate", 1, gate_up[..., ::2]),
        ("up", 1, gate_up[..., 1::2]),
        ("down", 0, down),
    ):
        parameter = loaded.checkpoint.parameters[f"layers/mlp/{name}"]
        assert parameter.dtype == "bfloat16"
        dense = np.stack([parameter.read((layer, e)) for e in range(C.experts)])
        np.testing.assert_array_equal(dense.astype(np.float64), wanted)
        leaf = loaded.params["layers"]["mlp"][name]
        assert is_quantized(leaf) and leaf.scales == "e8m0" and leaf.nbits() == leaf.size * 4.25
        # Chips take a scale of 2^-127 for 0.
        wanted = np.where(np.abs(wanted) < 2.0**-124, 0, wanted)
        np.testing.assert_array_equal(leaf.dense()[layer], wanted)


def test_they_are_written_as_they_were_read(packed, tmp_path):
    certificate = convert(packed, tmp_path / "again", "hf")
    before, after = (load_file(f / "model.safetensors") for f in (packed, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert (values.dtype, values.tobytes()) == (after[name].dtype, after[name].tobytes()), name
    assert certificate["target"]["quantized"]
    assert certificate["round_trip"]["bit_equal"] == certificate["round_trip"]["tensors"] > 20
    settings = json.loads((tmp_path / "again/config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "mxfp4"


def test_another_type_is_dense_and_as_exact(packed, tmp_path):
    certificate = convert(packed, tmp_path / "dense", "hf", "bfloat16")
    assert certificate["round_trip"]["bit_equal"] == certificate["round_trip"]["tensors"]
    arrays = load_file(tmp_path / "dense/model.safetensors")
    assert not [name for name in arrays if name.endswith(("_blocks", "_scales"))]
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    # Numbers of MXFP4 come back as they were, but for a zero's sign and how a scale is chosen.
    convert(tmp_path / "dense", tmp_path / "packed_again", "hf", "mxfp4")
    with open_checkpoint(packed) as first, open_checkpoint(tmp_path / "packed_again") as second:
        for path in ("layers/mlp/up", "layers/mlp/down"):
            one, other = (x.parameters[path].read((0, 1)) for x in (first, second))
            np.testing.assert_array_equal(one, other)


def test_the_model_computes_what_the_dense_one_does(packed, tmp_path):
    convert(packed, tmp_path / "dense", "hf", "bfloat16", certified=False)
    ids = random_batch(2, 12)["inputs"]
    want, got = (np.asarray(load(folder).logits(ids)) for folder in (tmp_path / "dense", packed))
    # float32 products of the same numbers; scales of 2^33 are not among those of layer 0.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_adapters_train_over_the_stored_codes_of_experts_on_a_mesh(tmp_path):
    from research.train import train

    c = replace(C, vocab_size=320, d_ff=64)  # two blocks for each device of a tensor axis
    with building(tmp_path / "base") as folder:
        hf.write_folder(in_memory(c, random_params(c, "bfloat16")), folder, dtype="mxfp4")
        load_tokenizer("bytes").save(folder)
    e = experiment(
        "finetune",
        "task=causal_lm,method=lora,data=stdlib,smoke",
        init=str(tmp_path / "base"),
        mesh="expert:2,fsdp:2,tensor:2",
        **{"quantize.format": "mxfp4", "quantize.targets": "layers/mlp/(gate|up|down)"},
        **{"train.steps": 2, "train.eval_every": 0, "train.sample_tokens": 0},
    )
    done = train(e, tmp_path / "run", live=False)
    assert done.exit_code == 0 and done.step == 2
    stored = load(tmp_path / "base").params["layers"]["mlp"]
    for name, lora in open_run(tmp_path / "run").params["layers"]["mlp"].items():
        if name in ("gate", "up", "down"):
            assert lora.base.format == "mxfp4" and float(jnp.abs(lora.adapter.b).max()) > 0
            for mine, theirs in zip(jax.tree.leaves(lora.base), jax.tree.leaves(stored[name])):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop(DOWN + "_scales"), "has no tensor .*down_proj_scales"),
        (lambda a: a.update({DOWN + "_blocks": a[DOWN + "_blocks"][..., :8]}), "wanted uint8"),
        (lambda a: a[DOWN + "_scales"].fill(255), "blocks that are NaN; fetch it again"),
    ],
)
def test_what_is_damaged_is_named(packed, change, says):
    arrays = load_file(packed / "model.safetensors")
    change(arrays)
    save_file(arrays, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=says):
        load(packed)


def test_other_models_have_no_experts_in_mxfp4(tmp_path):
    c = FAMILIES["llama2_7b"]
    with pytest.raises(ValueError, match="mxfp4 is for the experts of gpt-oss"):
        hf.write_folder(in_memory(c, random_params(c)), tmp_path, dtype="mxfp4")
