"""A model.bin written here of the golden Whisper is read as the same model as its own folder."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from research.interop.load import open_checkpoint
from tests.interop.test_whisper import golden, write

TYPES = {"float32": 0, "int8": 1, "int16": 2}
FUSED = {
    "self_attention": ("self_attn", [["q_proj", "k_proj", "v_proj"], ["out_proj"]]),
    "attention": ("encoder_attn", [["q_proj"], ["k_proj", "v_proj"], ["out_proj"]]),
}


def arrays() -> dict[str, np.ndarray]:
    """The golden's tensors as CTranslate2 has them; keys get a bias of zeros."""
    theirs = {k.partition("/model.")[2]: v for k, v in golden().items() if "/model." in k}
    found = {"decoder/embeddings/weight": theirs["decoder.embed_tokens.weight"]}
    found["decoder/activation"] = np.int8(3)
    for side, layers in (("encoder", 2), ("decoder", 3)):
        found[f"{side}/num_heads"] = np.int16(4)
        positions = theirs[f"{side}.embed_positions.weight"]
        found[f"{side}/position_encodings/encodings"] = positions
        norms = {f"{side}/layer_norm": f"{side}.layer_norm"}
        for n in range(layers):
            here, there = f"{side}/layer_{n}", f"{side}.layers.{n}"
            norms[f"{here}/ffn/layer_norm"] = f"{there}.final_layer_norm"
            for number, name in enumerate(("fc1", "fc2")):
                for kind in ("weight", "bias"):
                    found[f"{here}/ffn/linear_{number}/{kind}"] = theirs[f"{there}.{name}.{kind}"]
            for block in ("self_attention", "attention")[: 1 + (side == "decoder")]:
                name, matrices = FUSED[block]
                norms[f"{here}/{block}/layer_norm"] = f"{there}.{name}_layer_norm"
                for number, parts in enumerate(matrices):
                    for kind in ("weight", "bias"):
                        whole = [
                            theirs.get(f"{there}.{name}.{part}.{kind}", np.zeros(32, np.float32))
                            for part in parts
                        ]
                        found[f"{here}/{block}/linear_{number}/{kind}"] = np.concatenate(whole)
        for ours, name in norms.items():
            found[f"{ours}/gamma"] = theirs[f"{name}.weight"]
            found[f"{ours}/beta"] = theirs[f"{name}.bias"]
    for n in (1, 2):
        for kind in ("weight", "bias"):
            found[f"encoder/conv{n}/{kind}"] = theirs[f"encoder.conv{n}.{kind}"]
    return found


def text(name: str) -> bytes:
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def folder(path: Path, spec: str = "WhisperSpec", version: int = 6, **changes) -> Path:
    """A folder as faster-whisper has it, with `changes` of its arrays."""
    path.mkdir(exist_ok=True)
    found = arrays() | changes
    content = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(found))
    for name, x in found.items():
        content += text(name) + struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
        content += struct.pack("<BI", TYPES[str(x.dtype)], x.nbytes) + x.tobytes()
    content += struct.pack("<I", 1) + text("decoder/projection/weight")
    (path / "model.bin").write_bytes(content + text("decoder/embeddings/weight"))
    settings = {"suppress_ids": [1, 2], "suppress_ids_begin": [3]}
    (path / "config.json").write_text(json.dumps(settings))
    return path


def test_a_folder_of_ctranslate2_is_the_same_model(tmp_path):
    with (
        open_checkpoint(folder(tmp_path / "ct2")) as ours,
        open_checkpoint(write(tmp_path / "hf")) as wanted,
    ):
        assert ours.format == "ctranslate2" and ours.config == wanted.config
        assert ours.parameters.keys() == wanted.parameters.keys()
        for name, parameter in ours.parameters.items():
            for index in parameter.indices():
                np.testing.assert_array_equal(
                    parameter.read(index), wanted.parameters[name].read(index)
                )
        assert ours.generation["suppress_tokens"] == [1, 2]
        assert ours.generation["begin_suppress_tokens"] == [3]
        # Every tensor of the file comes back by the rules.
        assert all(
            read().tobytes() == make().tobytes() for _, read, make in ours.original(ours.parameters)
        )
        reasons = set(ours.unused.values())
    assert reasons == {"the sinusoids", "a bias of keys, which moves no share of attention"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": "TransformerSpec"}, "its model is a TransformerSpec"),
        ({"version": 5}, "no model.bin of version 6"),
        ({"encoder/conv1/bias": np.zeros(32, np.int8)}, "is int8; convert the model without"),
        ({"decoder/activation": np.int8(0)}, "decoder/activation is 0; Whisper has 3"),
        ({"decoder/extra/weight": np.zeros((2, 2), np.float32)}, "'decoder/extra/weight'"),
    ],
)
def test_what_is_no_whisper_of_floats_is_refused(changes, message, tmp_path):
    folder(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [2, 40, 5_000, 100_000])
def test_a_file_that_is_cut_off_is_refused(kept, tmp_path):
    file = folder(tmp_path) / "model.bin"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match="model.bin ends within|fetch it again"):
        open_checkpoint(tmp_path)
