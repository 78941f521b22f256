"""transformers computes with our experts in MXFP4 what we do."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; pip install -e '.[parity]'"
)

from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from research.files import building
from research.interop.huggingface import folder as hf
from research.interop.load import load
from tests.families import FAMILIES, random_batch
from tests.interop.memory import in_memory, random_params

C = replace(FAMILIES["gpt_oss_20b"], layers=2, d_ff=32)


def test_a_folder_in_mxfp4_is_the_model(tmp_path):
    with building(tmp_path / "packed") as folder:
        hf.write_folder(in_memory(C, random_params(C, "bfloat16")), folder, dtype="mxfp4")
    # Without its kernels transformers makes the experts dense, in the type of the model.
    settings = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed", dtype=torch.float32, quantization_config=settings
    )
    ids = random_batch(2, 12)["inputs"]
    with torch.no_grad():
        want = model.eval()(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    # Float32 products of the same numbers in another order.
    np.testing.assert_allclose(load(tmp_path / "packed").logits(ids), want, atol=1e-5)


def test_blocks_are_read_as_transformers_reads_them(tmp_path):
    with building(tmp_path / "packed") as folder:
        hf.write_folder(in_memory(C, random_params(C, "bfloat16")), folder, dtype="mxfp4")
    checkpoint = hf.open_folder(tmp_path / "packed")
    stored = hf.open_safetensors(tmp_path / "packed")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    blocks, scales = (torch.from_numpy(stored.read(name + end)) for end in ("_blocks", "_scales"))
    want = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16).float().numpy()
    for half, path in enumerate(("layers/mlp/gate", "layers/mlp/up")):
        got = checkpoint.parameters[path].read((1, 2)).astype(np.float32)
        np.testing.assert_array_equal(got, want[2, :, half::2])
