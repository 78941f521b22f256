"""What the data must know of the encoders of a model to make room for their soft tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SoftTokens:
    """An encoder of images, as the data see it.

    size    pixels of a side
    form    "siglip", "clip", "dinov2": how pictures of other shapes are made square
    tokens  places that a block of images takes in a text
    frames  images of a block: a video becomes one, pooled in time; a picture fills it alone. With 1
            a video becomes `video_frames` blocks, a frame each
    token   the id of a place
    """

    size: int
    form: str = "siglip"
    tokens: int = 1
    frames: int = 1
    token: int = 0
    video_frames: int = 4

    def blocks(self, kind: str) -> int:
        """The blocks that a medium takes. ValueError for one without an encoder."""
        if kind == "audio":
            raise ValueError("it has audio, and the model has no encoder of sounds")
        return self.video_frames if kind == "video" and self.frames == 1 else 1

    def most_blocks(self, length: int) -> int:
        """The most blocks of a row of `length` tokens."""
        return max(1, length // self.tokens)
