"""Media decoded and made the size that a model reads, in the threads of the loader."""

import logging
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from research.data.media.images import read_image
from research.data.media.kinds import Medium
from research.data.media.limits import BadMedia
from research.data.media.mel import mel_window
from research.data.media.resize import resized
from research.data.media.soft_tokens import SoftTokens, SoundTokens
from research.data.media.sound import read_sound, within
from research.data.media.video import read_video


def decoded(medium: Medium, soft: SoftTokens) -> np.ndarray:
    """The images of a medium, uint8 [blocks * frames, size, size, 3], or the log-mel frames of a
    sound, float32 [1, frames, mels]. BadMedia for one that cannot be decoded."""
    if medium.kind == "audio":
        return _heard(medium, soft.of_sounds())[None]
    wanted = soft.blocks(medium.kind) * soft.frames
    if medium.kind == "video":
        pictures, _ = read_video(medium.source, wanted)
    else:
        pictures = [read_image(medium.source).pixels] * wanted
    return np.stack([resized(picture, soft.size, soft.form) for picture in pictures])


def _heard(medium: Medium, sound: SoundTokens) -> np.ndarray:
    samples, _ = read_sound(medium.source, within(sound.frames))
    try:
        return mel_window(samples, sound.frames, sound.mels)
    except ValueError as error:
        raise BadMedia(str(error)) from None


class Decoded(NamedTuple):
    """The media of a record in the order of their places, those of a kind after each other.

    images  uint8 [n, size, size, 3]
    sounds  float32 [n, frames, mels], log-mel frames
    whole   True if all could be read
    """

    images: np.ndarray
    sounds: np.ndarray
    whole: bool


class Decoder:
    """Decodes the media of records. A medium whose header was well and whose content is broken is
    told with its record, once; ValueError for more records than `most_bad`. What stands for it in
    the batch is black or zero, and whoever asks must give its record no weight: the same at every
    pass, so that a resumed run sees the same batches."""

    def __init__(self, soft: SoftTokens, most_bad: int):
        self.soft, self._most = soft, most_bad
        # Loader threads decode at the same time.
        self._lock, self._bad = threading.Lock(), set[str]()

    def read(self, media: Sequence[Medium], record: str) -> Decoded:
        """All media of a record. ValueError for one without an encoder."""
        size, sound = self.soft.size, self.soft.sound
        images = [np.zeros((0, size, size, 3), np.uint8)]
        sounds = [np.zeros((0, sound.frames, sound.mels) if sound else (0, 1, 1), np.float32)]
        whole = True
        for medium in media:
            heard, count = medium.kind == "audio", self.soft.blocks(medium.kind)
            parts = sounds if heard else images
            try:
                parts.append(decoded(medium, self.soft))
            except BadMedia as error:
                self._tell(record, medium, error)
                count *= 1 if heard else self.soft.frames
                parts.append(np.zeros((count, *parts[0].shape[1:]), parts[0].dtype))
                whole = False
        return Decoded(np.concatenate(images), np.concatenate(sounds), whole)

    def _tell(self, record: str, medium: Medium, error: BadMedia) -> None:
        with self._lock:
            if record in self._bad:
                return
            self._bad.add(record)
            count = len(self._bad)
        line = f"{record}: {medium.kind}: {error}"
        if count > self._most:
            raise ValueError(
                f"{line} (unreadable record {count}, {self._most} allowed); repair the file or set "
                "config.data.max_bad_records"
            )
        logging.warning("no loss on %s (%d so far)", line, count)
