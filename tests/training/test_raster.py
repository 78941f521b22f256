"""Arrays drawn as SVG: pictures as they are, and a tone where its frequency and its second are."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from research.data.media.mel import log_mel, mel_centres
from research.data.media.sound import RATE
from research.training.raster import pictures_svg, spectrogram_svg


def images(svg: str) -> list[np.ndarray]:
    """The pictures within an SVG, decoded by Pillow."""
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    found = re.findall(r"base64,([^\"]+)", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_pictures_are_drawn_as_they_are_with_their_names():
    rng = np.random.default_rng(0)
    given = [rng.integers(0, 255, (4, 6, 3), np.uint8) for _ in range(5)]
    svg = pictures_svg(given, ["a < b", "one with a name too long"], columns=2)
    for one, drawn in zip(given, images(svg), strict=True):
        np.testing.assert_array_equal(one, drawn)
    texts = [one.text for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("text")]
    assert texts == ["a < b", "one with a nam…", None, None, None]
    assert "<title>one with a name too long</title>" in svg


def test_a_tone_is_bright_at_its_frequency_and_its_second():
    seconds = np.arange(2 * RATE) / RATE
    tone = np.where(seconds < 1, 0, 0.5 * np.sin(2 * np.pi * 1000 * seconds))
    [drawn] = images(spectrogram_svg(log_mel(tone)))
    bright = drawn.astype(int).sum(axis=2)
    assert bright.shape == (80, 200)
    row, frame = np.unravel_index(np.argmax(bright), bright.shape)
    # Row 0 is the highest band; a band near 1000 Hz is 33 Hz wide.
    assert abs(mel_centres(80)[79 - row] - 1000) < 40 and frame > 99
    assert bright[:, :95].max() < bright[row, 150]


def test_the_axis_names_seconds():
    svg = spectrogram_svg(np.arange(80 * 300.0).reshape(80, 300))
    assert ">0 s<" in svg and ">3 s<" in svg and ">7,000<" in svg


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pictures_svg([]), "0 pictures and 0 names"),
        (lambda: pictures_svg([np.zeros((2, 2, 3), np.uint8)], ["a", "b"]), "1 pictures and 2"),
        (lambda: spectrogram_svg(np.zeros(80)), r"the shape \(80,\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
