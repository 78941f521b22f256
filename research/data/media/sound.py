"""Sounds as mono samples at 16 kHz: WAV files, read by the standard library."""

import io
import wave
from dataclasses import replace
from math import gcd
from pathlib import Path

import numpy as np

from research.data.media.limits import LIMITS, BadMedia, Limits, read_bytes

RATE = 16_000
# Beyond these a header is broken, and the filter of the resampling is as long as the rate is large.
_RATES = (4_000, 384_000)
# Bytes of the data where whoever wrote the header could not know, as into a pipe.
_UNKNOWN = 0xFFFFFF00
# By its last word: how a note with a number in it is counted.
_KINDS = {"averaged": "of several channels, averaged", "Hz": f"of another rate, made {RATE} Hz"}
# A share of samples at full scale over which clipping is told; peaks of good recordings touch it.
_CLIPPED = 0.001


def read_sound(source: bytes | Path, limits: Limits = LIMITS) -> tuple[np.ndarray, tuple[str, ...]]:
    """(samples float32 [n] in -1 to 1 at 16 kHz, notes).

    Channels are averaged and other rates resampled; both are notes, as are a file that is cut off,
    of which the samples that are there come back, silence, and clipping. BadMedia for a file that
    is no WAV of whole numbers, that holds no sample, or that is over a limit.
    """
    frames, rate, full, notes = _frames(read_bytes(source, limits), limits)
    peak = np.abs(frames).max()
    if peak <= 1:
        notes.append("silent")
    clipped = float(np.mean(np.abs(frames) >= full))
    if clipped > _CLIPPED:
        notes.append(f"clipped, {clipped:.1%} of its samples stand at full scale")
    if frames.shape[1] > 1:
        notes.append(f"{frames.shape[1]} channels averaged")
    samples = frames.mean(axis=1, dtype=np.float32) / np.float32(full + 1)
    if rate != RATE:
        samples = _resampled(samples, rate)
        notes.append(f"resampled from {rate} to {RATE} Hz")
    return samples, tuple(notes)


def within(frames: int) -> Limits:
    """The limits of a sound that must fit into so many frames of 10 ms, by its header before it is
    decoded. They are full seconds, so `research.data.media.mel.mel_window` checks the rest."""
    return replace(LIMITS, seconds=min(LIMITS.seconds, -(-frames // 100)))


def inspect_sound(source: bytes | Path, frames: int) -> tuple[str, ...]:
    """What is doubtful about a sound that must fit into so many frames of 10 ms: the notes of
    `read_sound` without their numbers, so that those of many sounds can be counted. BadMedia as
    `read_sound`, and for a longer one."""
    samples, notes = read_sound(source, within(frames))
    if len(samples) > frames * RATE // 100:
        raise BadMedia(too_long(len(samples), frames))
    return tuple(_KINDS.get(note.split()[-1], note.partition(",")[0]) for note in notes)


def too_long(samples: int, frames: int) -> str:
    """Why a sound of so many samples does not fit into the frames of an encoder."""
    return (
        f"it lasts {samples / RATE:.2f} s, over the {frames / 100:g} s that the model's encoder "
        f"reads at once (model.sound.frames={frames}); cut it, or set more frames"
    )


def windows(samples: np.ndarray, seconds: int = 30) -> np.ndarray:
    """Sound of any length as float32 [windows, seconds * 16000], the last one filled with silence.

    >>> windows(np.ones(16_001), seconds=1).sum(axis=1).tolist()
    [16000.0, 1.0]
    """
    if seconds < 1:
        raise ValueError(f"seconds={seconds} must be positive")
    size = seconds * RATE
    filled = np.zeros(max(1, -(-len(samples) // size)) * size, np.float32)
    filled[: len(samples)] = samples
    return filled.reshape(-1, size)


def _frames(data: bytes, limits: Limits) -> tuple[np.ndarray, int, int, list[str]]:
    """(float32 [frames, channels] of whole numbers, their rate, the greatest number that their
    width can hold, notes)."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width = file.getnchannels(), file.getsampwidth()
            rate, declared = file.getframerate(), file.getnframes()
            if not _RATES[0] <= rate <= _RATES[1]:
                raise BadMedia(f"its rate is {rate} Hz, read are {_RATES[0]} to {_RATES[1]}")
            # One more than the limit is enough to know that it is over.
            content = file.readframes(min(declared, rate * limits.seconds + 1))
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends within its header"
        raise BadMedia(
            f"it is no WAV of whole numbers ({reason}); convert it with ffmpeg -i FILE -ar {RATE} "
            "-ac 1 -c:a pcm_s16le NAME.wav"
        ) from None
    if width not in (1, 2, 3, 4):
        raise BadMedia(f"its samples have {width} bytes, read are 1 to 4")
    size = channels * width
    count = len(content) // size
    if not count:
        raise BadMedia("it has no samples")
    if count > rate * limits.seconds:
        raise BadMedia(f"it is longer than the {limits.seconds:,} s that are read; cut it")
    notes = []
    if count < declared and declared * size < _UNKNOWN:
        notes.append(f"cut off, {count / rate:.1f} of {declared / rate:.1f} s are there")
    numbers = _numbers(content[: count * size], width).reshape(count, channels)
    return numbers, rate, 2 ** (8 * width - 1) - 1, notes


def _numbers(content: bytes, width: int) -> np.ndarray:
    """Little-endian whole numbers of 1 to 4 bytes as float32: the lowest bits of 32 are lost."""
    if width == 1:  # The only width that is stored unsigned.
        return np.frombuffer(content, np.uint8).astype(np.float32) - 128
    if width == 3:
        # Three bytes become the upper three of four; dividing brings the sign down with them.
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] // 256).astype(np.float32)
    return np.frombuffer(content, f"<i{width}").astype(np.float32)


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    # SciPy comes with JAX; imported here, as most sounds of speech need none of it.
    from scipy.signal import resample_poly

    common = gcd(rate, RATE)
    return resample_poly(samples, RATE // common, rate // common).astype(np.float32)
