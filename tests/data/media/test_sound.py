"""WAV files as mono samples at 16 kHz, what is said of them, and their log-mel spectrograms."""

import io
import struct
import wave

import numpy as np
import pytest

from research.data.media.limits import BadMedia, Limits
from research.data.media.mel import log_mel
from research.data.media.sound import read_sound, windows

TIME = np.arange(1600) / 16_000
TONE = 0.5 * np.sin(2 * np.pi * 440 * TIME)
SHARE = np.mean(np.abs(4 * TONE) >= 1)
CLIPPED = f"clipped, {SHARE:.1%} of its samples stand at full scale"


def wav(frames, width=2, rate=16_000) -> bytes:
    """A WAV of numbers in -1 to 1, [frames] or [frames, channels]."""
    frames = np.atleast_2d(np.asarray(frames).T).T
    codes = np.round(frames * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        codes += 128
    content = codes.astype("<i8")[..., None].view(np.uint8)[..., :width].tobytes()
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((frames.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(content)
    return out.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read_to_its_own_step(width):
    samples, notes = read_sound(wav(TONE, width))
    assert samples.dtype == np.float32 and notes == ()
    # Two steps of the width, or of float32 where it is finer: scaled by 2^n - 1, read by 2^n.
    np.testing.assert_allclose(samples, TONE, atol=max(2 / 2 ** (8 * width - 1), 1e-6))


def test_channels_are_averaged_and_rates_resampled_with_a_note_each():
    both = wav(np.stack([TONE, np.zeros_like(TONE)], axis=1))
    samples, notes = read_sound(both)
    assert notes == ("2 channels averaged",)
    np.testing.assert_allclose(samples, TONE / 2, atol=1e-4)
    low = 0.5 * np.sin(2 * np.pi * 440 * np.arange(800) / 8_000)
    samples, notes = read_sound(wav(low, rate=8_000))
    assert notes == ("resampled from 8000 to 16000 Hz",) and len(samples) == 1600
    # Within, as the filter of the resampling sees silence beyond both ends.
    np.testing.assert_allclose(samples[100:-100], TONE[100:-100], atol=5e-3)


@pytest.mark.parametrize(
    "data, note",
    [
        (wav(np.zeros(160)), "silent"),
        (wav(np.clip(4 * TONE, -1, 1)), CLIPPED),
        (wav(TONE)[:-1601], "cut off, 0.0 of 0.1 s are there"),
    ],
    ids=["silent", "clipped", "cut"],
)
def test_a_doubtful_sound_is_read_with_one_note(data, note):
    assert read_sound(data)[1] == (note,)


def header(tag=1, rate=16_000) -> bytes:
    """A WAV of four zero samples whose format and rate can be wrong."""
    form = struct.pack("<HHIIHH", tag, 1, rate, 0, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", 8) + bytes(8)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "it is empty"),
        (b"ID3\x04" * 20, "no WAV of whole numbers"),
        (wav(TONE)[:20], "no WAV of whole numbers"),
        (header(tag=3), r"unknown format: 3.*ffmpeg"),
        (header(rate=2**32 - 1), "rate is 4294967295 Hz"),
        (wav([]), "no samples"),
        (wav(np.zeros(16_001)), "longer than the 1 s"),
    ],
    ids=["empty", "mp3", "half a header", "floats", "rate", "no samples", "long"],
)
def test_what_is_no_sound_is_refused_in_one_line(data, message):
    with pytest.raises(BadMedia, match=message) as error:
        read_sound(data, Limits(seconds=1))
    assert "\n" not in str(error.value)


def test_windows_hold_every_sample_once_and_end_in_silence():
    samples = np.arange(40_000, dtype=np.float32)
    rows = windows(samples, seconds=1)
    assert rows.shape == (3, 16_000)
    np.testing.assert_array_equal(rows.ravel()[:40_000], samples)
    assert not rows.ravel()[40_000:].any()


SECOND = np.arange(16_000) / 16_000
CHIRP = 0.3 * np.sin(2 * np.pi * (200 + 3000 * SECOND) * SECOND)
CHIRP += 0.01 * np.cos(2 * np.pi * 5000 * SECOND)
# transformers' WhisperFeatureExtractor on the chirp: bands 0, 9, 40 and the last at six frames.
FRAMES = (0, 1, 37, 99, 100, 2999)
GOLDEN = {
    80: [
        [1.052066, 0.480706, -0.679876, -0.520189, -0.010804, -0.679876],
        [0.834983, 0.803050, -0.679876, -0.518986, -0.009600, -0.679876],
        [0.124647, -0.385701, -0.679876, -0.485840, 0.023694, -0.679876],
        [-0.364262, -0.679876, -0.679876, -0.101978, 0.408741, -0.679876],
    ],
    128: [
        [0.976307, 0.404947, -0.630806, -0.595948, -0.086564, -0.630806],
        [1.189098, 1.310657, -0.630806, -0.494211, 0.015315, -0.630806],
        [0.425491, -0.087603, -0.630806, -0.459532, 0.050018, -0.630806],
        [-0.364732, -0.630806, -0.630806, -0.106789, 0.404183, -0.630806],
    ],
}


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mels_are_those_of_whispers_feature_extractor(mels):
    logs = log_mel(windows(CHIRP)[0], mels)
    assert logs.shape == (mels, 3000) and logs.dtype == np.float32
    # The goldens have six digits.
    np.testing.assert_allclose(logs[[0, 9, 40, -1]][:, FRAMES], GOLDEN[mels], atol=2e-6)


@pytest.mark.parametrize(
    "samples, message",
    [
        (np.zeros(159), "at least 160 samples"),
        (np.zeros((160, 2)), "not mono"),
        (np.full(160, np.nan), "160 of 160 samples are not finite"),
    ],
)
def test_what_has_no_spectrogram_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        log_mel(samples)
