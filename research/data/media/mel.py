"""Log-mel spectrograms of 16 kHz sound, as Whisper's encoder reads them (arXiv:2212.04356, section
2.2; the constants are those of its released code)."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from research.data.media.sound import RATE, too_long

WINDOW = 400  # samples under one Fourier transform: 25 ms
HOP = 160  # samples from one frame to the next: 10 ms
# Frames transformed at a time: an hour in one piece takes over a gigabyte of complex numbers.
_BLOCK = 3000
# The value of every band of a silent sound: (log10(1e-10) + 4) / 4.
SILENCE = -1.5


def log_mel(samples: np.ndarray, mels: int = 80) -> np.ndarray:
    """The log-mel spectrogram float32 [mels, len(samples) // 160] of mono sound in -1 to 1.

    Powers of a mel band are log10, at most 8 under the greatest of the whole sound, then
    (x + 4) / 4, so about -1 to 1.5. The floor depends on the loudest frame of all that is given:
    fill a sound to 30 s (`windows`) before for what Whisper was trained on. ValueError for anything
    but one dimension of at least 160 finite samples.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or len(samples) < HOP:
        raise ValueError(
            f"sound of shape {samples.shape} is not mono with at least {HOP} samples (10 ms); "
            "average its channels or fill it with silence"
        )
    if not np.isfinite(samples).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(samples))} of {len(samples)} samples are not finite; "
            "give numbers in -1 to 1"
        )
    # Frame t is centred on sample 160 t, so half a window is reflected at both ends.
    padded = np.pad(samples.astype(np.float32), WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    # The frame centred on the very end is dropped: 30 s are 3000 frames and not 3001.
    count = len(samples) // HOP
    window, filters = _hann(), mel_filters(mels)
    power = np.empty((mels, count), np.float32)
    for start in range(0, count, _BLOCK):
        block = frames[start : min(start + _BLOCK, count)]
        spectrum = np.abs(np.fft.rfft(block * window)) ** 2
        power[:, start : start + len(block)] = filters @ spectrum.T
    logs = np.log10(np.maximum(power, 1e-10))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


def mel_window(samples: np.ndarray, frames: int, mels: int = 80) -> np.ndarray:
    """The log-mel frames float32 [frames, mels] of mono sound in a window, silence behind it.
    ValueError as `log_mel`, and for a sound that is longer than the window.

    >>> mel_window(np.zeros(1600), 20).shape
    (20, 80)
    """
    room = frames * HOP
    if len(samples) > room:
        raise ValueError(too_long(len(samples), frames))
    filled = np.zeros(room, np.float32)
    filled[: len(samples)] = samples
    return log_mel(filled, mels).T


def mel_table(audio: Sequence[Any], frames: int, mels: int = 80) -> np.ndarray:
    """The sounds of each text as one array float32 [texts, M, frames, mels], silence behind those
    of texts with fewer than M. A sound is mono samples [n] at 16 kHz, or its frames [frames, mels]
    already. ValueError as `mel_window`, by the number of the text."""
    rows = [[] if sounds is None else list(sounds) for sounds in audio]
    quiet = np.float32(SILENCE)
    table = np.full((len(rows), max(map(len, rows), default=0), frames, mels), quiet, np.float32)
    for number, row in enumerate(rows):
        for at, sound in enumerate(row):
            sound = np.asarray(sound)
            try:
                table[number, at] = sound if sound.ndim == 2 else mel_window(sound, frames, mels)
            except ValueError as error:
                raise ValueError(f"sound {at} of text {number}: {error}") from None
    return table


@cache
def mel_filters(mels: int) -> np.ndarray:
    """Triangles over the frequencies of a frame, float64 [mels, 201], each of area one in Hz, their
    corners at equal distances on Slaney's mel scale from 0 to 8000 Hz (Auditory Toolbox, 1998).

    >>> mel_filters(80).shape
    (80, 201)
    """
    if mels < 1:
        raise ValueError(f"mels={mels} must be positive; Whisper has 80, its large-v3 has 128")
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    corners = _hertz(np.linspace(0, _mel(RATE / 2), mels + 2))
    widths = np.diff(corners)[:, None]
    rising = (bins - corners[:-2, None]) / widths[:-1]
    falling = (corners[2:, None] - bins) / widths[1:]
    filters = np.maximum(0, np.minimum(rising, falling))
    filters *= 2 / (corners[2:] - corners[:-2])[:, None]
    # Held by the cache, so nobody may write into it.
    filters.setflags(write=False)
    return filters


def mel_centres(mels: int) -> np.ndarray:
    """The middle frequency of each mel band in Hz, float64 [mels], where its triangle peaks.

    >>> mel_centres(80)[[0, 39, 79]].round().tolist()
    [37.0, 1657.0, 7699.0]
    """
    return _hertz(np.linspace(0, _mel(RATE / 2), mels + 2))[1:-1]


# Slaney's scale: 3 mels for each 200 Hz up to 1000 Hz, from there 27 mels for a factor of 6.4.
_KNEE_HERTZ, _KNEE_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27


def _mel(hertz: float) -> float:
    """The mel of a frequency over 1000 Hz."""
    return _KNEE_MEL + float(np.log(hertz / _KNEE_HERTZ)) / _LOG_STEP


def _hertz(mel: np.ndarray) -> np.ndarray:
    over = _KNEE_HERTZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL))
    return np.where(mel < _KNEE_MEL, mel * 200 / 3, over)


def _hann() -> np.ndarray:
    """The periodic Hann window: one period is 400 samples, so the last is not zero."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
