"""What the data must know of the encoders of a model to make room for their soft tokens."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SoundTokens:
    """An encoder of sounds, as the data see it.

    frames  log-mel frames of a sound, a hundred a second, with silence behind a shorter one
    mels    bands of a frame
    tokens  places that a sound takes in a text
    token   the id of a place
    """

    frames: int
    mels: int = 80
    tokens: int = 1
    token: int = 0


@dataclass(frozen=True)
class SoftTokens:
    """The encoder of images of a model as the data see it, and that of sounds.

    size    pixels of a side, 0 without an encoder of images
    form    "siglip", "clip", "dinov2": how pictures of other shapes are made square
    tokens  places that a block of images takes in a text
    frames  images of a block: a video becomes one, pooled in time; a picture fills it alone. With 1
            a video becomes `video_frames` blocks, a frame each
    token   the id of a place
    sound   None without an encoder of sounds
    """

    size: int = 0
    form: str = "siglip"
    tokens: int = 1
    frames: int = 1
    token: int = 0
    video_frames: int = 4
    sound: SoundTokens | None = None

    def blocks(self, kind: str) -> int:
        """The blocks that a medium takes. ValueError for one without an encoder."""
        if kind == "audio":
            self.of_sounds()
            return 1
        if not self.size:
            raise ValueError(f"it has {kind} media, and the model has no encoder of images")
        return self.video_frames if kind == "video" and self.frames == 1 else 1

    def places(self, kind: str) -> tuple[int, int]:
        """(the id of a medium's places, how many it takes). ValueError as `blocks`."""
        if kind == "audio":
            sound = self.of_sounds()
            return sound.token, sound.tokens
        return self.token, self.blocks(kind) * self.tokens

    @property
    def ids(self) -> dict[int, int]:
        """{the id of a place: places of a block} of each encoder."""
        images = {self.token: self.tokens} if self.size else {}
        return images | ({self.sound.token: self.sound.tokens} if self.sound else {})

    def of_sounds(self) -> SoundTokens:
        """The encoder of sounds. ValueError without one."""
        if self.sound is None:
            raise ValueError("it has audio, and the model has no encoder of sounds")
        return self.sound

    def empty(self, length: int) -> dict[str, np.ndarray]:
        """The media of a row of `length` tokens, as many as have room, all of them zero: "images"
        uint8 [M, size, size, 3] and "sounds" float32 [M, frames, mels] of the encoders there
        are."""
        fields: dict[str, np.ndarray] = {}
        if self.size:
            most = max(1, length // self.tokens) * self.frames
            fields["images"] = np.zeros((most, self.size, self.size, 3), np.uint8)
        if self.sound:
            most = max(1, length // self.sound.tokens)
            fields["sounds"] = np.zeros((most, self.sound.frames, self.sound.mels), np.float32)
        return fields
