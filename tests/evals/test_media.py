"""Answers to media: what is compared, and with whose media."""

from dataclasses import replace

import numpy as np

from research.data.media.mel import SILENCE
from research.evals.media import _conversations, _removed, _shuffled
from research.models.image_config import ImageConfig
from research.models.presets import PRESETS
from research.models.sound_config import SoundConfig

IMAGE = ImageConfig(layers=1, size=4, patch=2, d_model=8, heads=2, d_ff=12, token=50, frames=2)
SOUND = SoundConfig(layers=1, mels=1, frames=4, d_model=4, heads=2, stack=1, token=60)
MODEL = replace(PRESETS["llama2_7b"], image=IMAGE, sound=SOUND)


def batch() -> dict[str, np.ndarray]:
    """Two sounds in the first row, one beside an image of two frames in the second."""
    rows = [[60, 60, 1, 60, 60, 2, 0, 0], [60, 60, 3, 50, 50, 50, 50, 4]]
    sounds = np.zeros((2, 3, 4, 1), np.float32)
    sounds[0, :2, 0, 0], sounds[1, 0, 0, 0] = (1, 2), 3
    images = np.zeros((2, 4, 4, 4, 3), np.uint8)
    images[1, :2, 0, 0, 0] = 5, 6
    weights = np.zeros((2, 8), np.float32)
    weights[0, [1, 4]] = weights[1, 1] = 1
    segments = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1] * 8])
    return {
        "inputs": np.array(rows), "weights": weights, "segments": segments,
        "sounds": sounds, "images": images,
    }  # fmt: skip


def test_media_change_places_with_each_other_and_never_with_empty_ones():
    turned = _shuffled(MODEL, batch())
    assert turned["sounds"][:, :, 0, 0].tolist() == [[3, 1, 0], [2, 0, 0]]
    assert turned["images"][1, :, 0, 0, 0].tolist() == [6, 5, 0, 0]


def test_what_is_removed_is_black_and_silent():
    removed = _removed(batch())
    assert not removed["images"].any() and (removed["sounds"] == SILENCE).all()
    np.testing.assert_array_equal(removed["inputs"], batch()["inputs"])


def test_a_conversation_is_a_segment_with_an_answer():
    assert list(_conversations(batch())) == [(0, 1), (0, 2), (1, 1)]
