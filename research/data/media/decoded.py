"""Media decoded and made the size that a model reads, in the threads of the loader."""

import logging
import threading
from collections.abc import Sequence

import numpy as np

from research.data.media.images import read_image
from research.data.media.kinds import Medium
from research.data.media.limits import BadMedia
from research.data.media.resize import resized
from research.data.media.soft_tokens import SoftTokens
from research.data.media.video import read_video


def decoded(medium: Medium, soft: SoftTokens) -> np.ndarray:
    """The images of a medium, uint8 [blocks * frames, size, size, 3]. BadMedia for one that cannot
    be decoded."""
    wanted = soft.blocks(medium.kind) * soft.frames
    if medium.kind == "video":
        pictures, _ = read_video(medium.source, wanted)
    else:
        pictures = [read_image(medium.source).pixels] * wanted
    return np.stack([resized(picture, soft.size, soft.form) for picture in pictures])


class Decoder:
    """Decodes the media of records. A medium whose header was well and whose content is broken is
    told with its record, once; ValueError for more records than `most_bad`. What stands for it in
    the batch is black, and whoever asks must give its record no weight: the same at every pass, so
    that a resumed run sees the same batches."""

    def __init__(self, soft: SoftTokens, most_bad: int):
        self.soft, self._most = soft, most_bad
        # Loader threads decode at the same time.
        self._lock, self._bad = threading.Lock(), set[str]()

    def images(self, media: Sequence[Medium], record: str) -> tuple[np.ndarray, bool]:
        """(images uint8 [n, size, size, 3] of all media in order, True if all could be read)."""
        size = self.soft.size
        parts, whole = [np.zeros((0, size, size, 3), np.uint8)], True
        for medium in media:
            try:
                parts.append(decoded(medium, self.soft))
            except BadMedia as error:
                self._tell(record, medium, error)
                count = self.soft.blocks(medium.kind) * self.soft.frames
                parts.append(np.zeros((count, size, size, 3), np.uint8))
                whole = False
        return np.concatenate(parts), whole

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
