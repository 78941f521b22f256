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
    config = json.loads((tmp_path / "again/config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, info = kind.from_pretrained(
        tmp_path / "again", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    fields, field = golden(name), "pairs" if name in PAIRS else "logits"
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
    got = out["logits_per_image" if name in PAIRS else "logits"].numpy()
    # The same program with the same weights; threads may split its sums otherwise.
    np.testing.assert_allclose(got, fields[field], atol=1e-5, rtol=0)
