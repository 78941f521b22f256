"""Every family that reads images against transformers: what the reference computed of texts with
images and random weights, our model computes too."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.interop.huggingface.folder import write_folder
from research.interop.load import load, open_checkpoint

FOLDER = Path(__file__).parent / "image_goldens"
GOLDENS = sorted(path.stem for path in FOLDER.glob("*.npz"))


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def tensors(name: str) -> dict[str, np.ndarray]:
    start = "tensor/"
    return {k.removeprefix(start): v for k, v in golden(name).items() if k.startswith(start)}


def write(name: str, folder: Path, rename=lambda name: name, **changes) -> Path:
    """The folder of a golden, with other names of its tensors and changes of its config.json."""
    folder.mkdir(exist_ok=True)
    arrays = {rename(key): values for key, values in tensors(name).items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(str(golden(name)["config"])) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# Logits are of the order of 10 to 60, whose float32 spacing is up to 4e-6, and pass through a few
# tens of sums whose order differs between the two libraries.
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", GOLDENS)
def test_logits_are_the_references(name, tmp_path):
    loaded, fields = load(write(name, tmp_path)), golden(name)
    got = loaded.logits(fields["ids"], images=fields["images"])
    np.testing.assert_allclose(got, fields["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", GOLDENS)
def test_what_is_written_is_what_was_read(name, tmp_path):
    source, again = write(name, tmp_path / "source"), tmp_path / "again"
    again.mkdir()
    with open_checkpoint(source) as checkpoint:
        write_folder(checkpoint, again)
        config = checkpoint.config
    with open_checkpoint(again) as other:
        assert other.config == config
    ours, theirs = load_file(again / "model.safetensors"), tensors(name)
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_array_equal(ours[key], values)
    written = json.loads((again / "config.json").read_text())
    assert written["architectures"] == json.loads(str(golden(name)["config"]))["architectures"]
