"""Vectors of picture files are those of training, and a file that is none is named."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.data.tokenizers import load_tokenizer
from research.infer.pictures import embed_images, embed_names
from research.models.config import ModelConfig
from research.models.image_config import ImageConfig
from research.models.model import Model
from research.models.pair_vectors import vectors
from research.models.spec import initialize

Image = pytest.importorskip("PIL.Image", reason="pictures are decoded by Pillow, extra [media]")

IMAGE = ImageConfig(layers=1, size=8, patch=4, d_model=8, heads=2, d_ff=16)
SIZES = dict(layers=1, d_model=16, heads=2, kv_heads=2, head_size=8, d_ff=16)


def test_files_and_texts_have_the_vectors_of_training(tmp_path):
    tokenizer = load_tokenizer("bytes")
    model = Model(ModelConfig(vocab_size=tokenizer.vocab_size, image=IMAGE, **SIZES))
    params = initialize(jax.random.key(0), model.specs(), jnp.float32)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8)
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for file, one in zip(files, pixels):
        Image.fromarray(one).save(file)
    ids = [tokenizer.bos_id, *b"ab", tokenizer.eos_id]
    tokens = np.array([[token for token in ids if token is not None]] * 2, np.int32)
    text = {"inputs": tokens, "segments": np.ones_like(tokens)}
    text["positions"] = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (2, 1))
    images, texts = vectors(model, params, {**text, "images": pixels[:, None]})
    # Other batches, other order of float32 sums.
    np.testing.assert_allclose(embed_images(model, params, files), images, atol=1e-5)
    names = embed_names(model, params, tokenizer, ["a longer one", "ab"])
    np.testing.assert_allclose(names[1], texts[0], atol=1e-5)
    files[1].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"--image=.*1\.png: it is no picture"):
        embed_images(model, params, files)
    plain = Model(replace(model.config, image=ImageConfig()))
    with pytest.raises(ValueError, match="no encoder of images"):
        embed_images(plain, params, files)
