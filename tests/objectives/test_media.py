"""Objectives of pictures: what is trained, by which pictures, and from which files."""

import base64
import io
import json
import re
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from rich.text import Text

from research import tree
from research.models.config import ModelConfig
from research.models.image_config import ImageConfig
from research.models.model import Model
from research.models.pair_vectors import vectors
from research.models.spec import initialize
from research.objectives.contrastive import Contrastive, found
from research.objectives.media_chat import MediaChat
from research.objectives.picture_page import row_section
from research.parallel.mesh import make_mesh
from research.tuning.lora_specs import LoraConfig
from research.tuning.method import QuantizeConfig, TuneConfig, split_specs
from tests.configs import ROOT
from tests.data.media.test_sound import wav

SIZE, T = 8, 12
IMAGE = ImageConfig(layers=1, size=SIZE, patch=4, d_model=8, heads=2, d_ff=16, token=31)
MODEL = Model(
    ModelConfig(
        vocab_size=32, layers=1, d_model=16, heads=2, kv_heads=2, head_size=8, d_ff=16, image=IMAGE
    )
)


def batch(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    segments = np.repeat(np.arange(T)[None, :] < 7, rows, axis=0).astype(np.int32)
    return {
        "inputs": rng.integers(1, 30, (rows, T), dtype=np.int32) * segments,
        "segments": segments,
        "positions": np.tile(np.arange(T, dtype=np.int32), (rows, 1)),
        "images": rng.integers(0, 255, (rows, 1, SIZE, SIZE, 3), dtype=np.uint8),
        "weights": np.ones((rows, 1), np.float32),
    }


def test_devices_share_a_contrastive_step_of_one():
    given, objective = batch(8), Contrastive()
    given["weights"][5] = 0
    params = initialize(jax.random.key(0), MODEL.specs(), jnp.float32)

    def loss(params, batch):
        return objective.loss(MODEL, params, {"base": {}}, batch, None)[0]

    total, gradient = jax.jit(jax.value_and_grad(loss))(params, given)
    with jax.set_mesh(make_mesh("data:8")):
        placed = {
            name: jax.device_put(x, PartitionSpec("data", *[None] * (x.ndim - 1)))
            for name, x in given.items()
        }
        whole = jax.device_put(params, PartitionSpec())
        shared, other = jax.jit(jax.value_and_grad(loss))(whole, placed)
    # Float32 sums in another order.
    np.testing.assert_allclose(shared, total, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, gradient
    )


def test_the_vectors_of_a_row_are_of_its_picture_and_of_its_text_alone():
    params, given = initialize(jax.random.key(0), MODEL.specs(), jnp.float32), batch(2)
    images, texts = vectors(MODEL, params, given)
    np.testing.assert_allclose(jnp.linalg.norm(images, axis=1), 1, rtol=1e-6)
    padded = given["inputs"].copy()
    padded[:, 7:] = 9  # padding has no part in a text
    swapped = {**given, "inputs": padded, "images": given["images"][::-1]}
    others, same = vectors(MODEL, params, swapped)
    np.testing.assert_allclose(others, images[::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(same, texts, rtol=1e-5, atol=1e-6)


def test_recall_counts_rows_whose_own_key_is_nearest_among_those_that_count():
    queries = jnp.eye(3)
    keys = jnp.array([[1.0, 0, 0], [2.0, 0.5, 0], [0, 0, 1.0]])
    assert found(queries, keys, jnp.ones(3)).tolist() == [0.0, 1.0, 1.0]
    assert found(queries, keys, jnp.array([1.0, 0, 1])).tolist() == [1.0, 0.0, 1.0]


def test_places_are_read_and_never_learnt():
    tokens = np.array([1, 31, 31, 2, 3, 31, 4], np.int32)
    window = {"tokens": tokens, "segments": np.ones(7, np.int32), "positions": np.arange(7)}
    window |= {"assistant": np.array([0, 0, 0, 1, 1, 0, 1], np.int32), "images": np.zeros(1)}
    example = MediaChat().example(window, np.random.default_rng(0))
    assert example["weights"].tolist() == [0, 0, 1, 1, 0, 1]
    assert example["images"] is window["images"]


def test_a_page_shows_the_pictures_of_a_row_as_the_encoder_gets_them():
    images = np.zeros((3, 2, 4, 3), np.uint8)
    images[0], images[1, 0, 0] = 7, (1, 2, 3)
    heading, markup = row_section([Text("row 0"), Text("<b>")], {"images": images})
    assert heading == "row 0" and "&lt;b&gt;" in markup
    files = [base64.b64decode(one) for one in re.findall('base64,([^"]+)"', markup)]
    # The third is black: no picture of the row.
    assert len(files) == 2
    data = zlib.decompress(files[1][files[1].index(b"IDAT") + 4 : -16])
    assert data == b"".join(b"\0" + row.tobytes() for row in images[1])


def test_a_page_shows_the_spectrograms_of_a_row():
    sounds = np.zeros((3, 5, 4), np.float32)
    sounds[0, :, 0], sounds[1, 2, 3] = 1.0, -1.5
    _, markup = row_section([Text("row 0")], {"sounds": sounds})
    files = [base64.b64decode(one) for one in re.findall('base64,([^"]+)"', markup)]
    assert len(files) == 2 and 'title="sound 1, 0.05 s, 4 bands"' in markup
    data = zlib.decompress(files[0][files[0].index(b"IDAT") + 4 : -16])
    # Time from left to right, the lowest band in the last row.
    assert data == (b"\0" + bytes(15)) * 3 + b"\0" + bytes([255] * 15)


def test_the_first_stage_trains_the_projector_alone():
    part = TuneConfig(method="part", also="image/projector/.*")
    settings = MODEL.config, part, LoraConfig(), QuantizeConfig()
    trained, frozen = (tree.paths(one) for one in split_specs(MODEL.specs(), *settings))
    assert set(trained) == {"image/projector/kernel", "image/projector/bias"}
    assert {**trained, **frozen}.keys() == tree.paths(MODEL.specs()).keys()
    with pytest.raises(ValueError, match="tune.also"):
        TuneConfig(method="part")


@pytest.mark.slow
def test_the_recipe_trains_from_a_folder_of_pictures_with_captions(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="pictures are decoded by Pillow")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(48):
        red = number % 2
        out = io.BytesIO()
        image.new("RGB", (20, 16), (255 * red, 0, 255 - 255 * red)).save(out, "PNG")
        (folder / f"{number}.png").write_bytes(out.getvalue())
        (folder / f"{number}.txt").write_text("a red one" if red else "a blue one")
    arguments = [f"--config=configs/multimodal.py:task=contrastive,data={folder},smoke"]
    arguments += ["--config.data.tokenizer=bytes", f"--workdir={tmp_path / 'run'}"]
    subprocess.run([sys.executable, "-m", "research.train", *arguments], cwd=ROOT, check=True)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_recipe_learns_what_is_said_from_a_folder_of_sounds_with_texts(tmp_path):
    folder, template = tmp_path / "sounds", tmp_path / "template.jinja"
    folder.mkdir()
    for number in range(48):
        tone = np.sin(np.arange(4800) * (0.1 + 0.3 * (number % 2)))
        (folder / f"{number}.wav").write_bytes(wav(tone / 2))
        (folder / f"{number}.txt").write_text("high" if number % 2 else "low")
    template.write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    arguments = [f"--config=configs/multimodal.py:task=asr,data={folder},smoke"]
    arguments += ["--config.data.tokenizer=bytes", f"--workdir={tmp_path / 'run'}"]
    arguments += [f"--config.data.chat_template={template}"]
    subprocess.run([sys.executable, "-m", "research.train", *arguments], cwd=ROOT, check=True)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if "loss" in row]
    assert losses[-1] < losses[0]
