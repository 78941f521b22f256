"""transformers reads the models with images that we write, and computes with them what it computed
with its own."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; pip install -e '.[parity]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; pip install -e '.[parity]'"
)

from research.interop.convert import convert
from tests.interop.test_image_families import ALL, PAIRS, golden, write


@pytest.mark.parametrize("name", ALL)
def test_an_exported_folder_is_the_model(name, tmp_path):
    write(name, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", "native", certified=False)
    convert(tmp_path / "ours", tmp_path / "again", "hf", certified=False)
    fields = golden(name)
    # The same program with the same weights in one process: no number may be another.
    np.testing.assert_array_equal(
        computed(tmp_path / "again", name, fields), computed(tmp_path / "theirs", name, fields)
    )


def computed(folder, name, fields):
    """What transformers computes with a folder of the golden's images and tokens: the logits, or
    the scores of images for texts."""
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixels = torch.from_numpy(np.moveaxis(fields["images"], -1, -3))
    tiles = config["model_type"] in ("smolvlm", "idefics3")
    given = {"pixel_values": pixels if tiles or name in PAIRS else pixels.flatten(0, 1)}
    if name in PAIRS:
        given["attention_mask"] = torch.from_numpy(fields["mask"])
    ids = torch.from_numpy(fields["ids"]).long()
    if "gemma" in name:
        images = (ids == config["image_token_index"]).long()
        given["token_type_ids"] = images if name == "gemma3" else torch.zeros_like(images)
    with torch.no_grad():
        out = model.eval()(input_ids=ids, **given)
    return out["logits_per_image" if name in PAIRS else "logits"].numpy()
