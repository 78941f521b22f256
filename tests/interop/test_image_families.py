"""Every family that reads images against transformers: what the reference computed of texts with
images and random weights, our model computes too."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.data.tokenizers import load_tokenizer
from research.infer.decode import generate
from research.infer.prompt_images import with_places
from research.infer.prompts import check_ids
from research.infer.sampling import SamplingConfig
from research.interop.huggingface.folder import write_folder
from research.interop.load import load, open_checkpoint

FOLDER = Path(__file__).parent / "image_goldens"
ALL = sorted(path.stem for path in FOLDER.glob("*.npz"))
PAIRS = ["clip", "siglip"]  # of images and texts, in which none stands in the other
GOLDENS = [name for name in ALL if name not in PAIRS]


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
# Others have the layers of these.
QUICK = ("smolvlm", "llava", "paligemma2", "gemma3")
MARKED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in GOLDENS]


@pytest.mark.parametrize("name", MARKED)
def test_logits_are_the_references(name, tmp_path):
    loaded, fields = load(write(name, tmp_path)), golden(name)
    got = loaded.logits(fields["ids"], images=fields["images"])
    np.testing.assert_allclose(got, fields["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_scores_of_pairs_are_the_references(name, tmp_path):
    loaded, fields = load(write(name, tmp_path)), golden(name)
    mask = fields["mask"] if name == "clip" else None
    got = loaded.pair_scores(fields["ids"], fields["images"], mask)
    # Scores are of the order of 0.2 and differ between pairs by 0.01 and more.
    np.testing.assert_allclose(got, fields["pairs"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ALL)
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


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "smolvlm" else pytest.mark.slow) for name in GOLDENS],
)
def test_a_cache_writes_the_references_continuation(name, tmp_path):
    # The golden's likeliest tokens lead by 1e-2 or more, which float sums do not close.
    loaded, fields = load(write(name, tmp_path)), golden(name)
    tokenizer = replace(load_tokenizer("bytes"), eos_id=None, pad_id=None)
    config = SamplingConfig(temperature=0, max_tokens=fields["greedy"].shape[1])
    given = loaded.model, loaded.params, tokenizer, fields["ids"].tolist(), config
    written = generate(*given, images=list(fields["images"]))
    np.testing.assert_array_equal([one.token_ids for one in written], fields["greedy"])


def test_a_place_named_once_for_each_image_is_as_many_as_its_soft_tokens(tmp_path):
    c = load(write("smolvlm", tmp_path)).config
    images = np.zeros((2, 16, 16, 3), np.uint8)
    wanted = [9, *[5] * 4, 8, *[5] * 4]
    assert with_places(c, 0, [9, 5, 8, 5], images) == wanted == with_places(c, 0, wanted, images)
    with pytest.raises(ValueError, match="prompt 3: row 0 has 1 places of soft tokens"):
        with_places(c, 3, [9, 5, 8], images)
    with pytest.raises(ValueError, match="prompt 0: .* no images were given"):
        with_places(c, 0, [9, 5, 8], None)
    # Whoever has no images to give says so in the same line for server, beam and engine.
    with pytest.raises(
        ValueError, match=r"prompt 0 has places of images \(id 5\), and none are given"
    ):
        check_ids(c, 0, "", [9, 5, 8])


# Layouts of names that releases of transformers have used for the same tensors.
LAYOUTS = {
    "vision_model": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
    "nested": lambda name: (
        name.removeprefix("language_model.")
        if name.startswith("language_model.lm_head")
        else "model." + name.replace("language_model.model.", "language_model.")
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_other_releases_are_the_same_model(layout, tmp_path):
    folder = write("llava", tmp_path, LAYOUTS[layout])
    with open_checkpoint(folder) as checkpoint:
        got = checkpoint.parameters["image/layers/mlp/up"].read((1,))
    wanted = tensors("llava")["vision_tower.encoder.layers.1.mlp.fc1.weight"].T
    np.testing.assert_array_equal(got, wanted)


VISION = json.loads(str(golden("smolvlm")["config"]))["vision_config"]


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("smolvlm", {"vision_config": VISION | {"hidden_act": "relu"}}, "hidden_act='relu'"),
        (
            "smolvlm",
            {"vision_config": VISION | {"image_size": 18}},
            "multiple of model.image.patch",
        ),
        ("smolvlm", {"scale_factor": 3}, "model.image.merge=3 must divide the 4 patches"),
        ("llava", {"vision_feature_layer": -1}, "vision_feature_layer=-1; wanted one of"),
        ("llava", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
        ("gemma3", {"mm_tokens_per_image": 5}, "mm_tokens_per_image=5; wanted the square"),
        ("clip", {"text_config": {"hidden_act": "gelu"}}, "text_config.hidden_act='gelu'"),
        ("gemma3", {"model_type": "qwen2_vl"}, "positions in time, height"),
    ],
)
def test_what_our_layers_do_not_compute_is_refused_by_name(name, changes, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        open_checkpoint(write(name, tmp_path, **changes))
