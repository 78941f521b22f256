"""What the data must know of a model's encoders."""

import numpy as np

from research.data.media.soft_tokens import SoftTokens, SoundTokens
from research.models.config import ModelConfig


def soft_tokens(c: ModelConfig) -> SoftTokens | None:
    """The model's encoders as the data see them, None without any."""
    sound = None
    if c.sound.layers:
        sound = SoundTokens(c.sound.frames, c.sound.mels, c.sound.tokens, c.sound.token)
    if not c.image.layers:
        return SoftTokens(sound=sound) if sound else None
    of = c.image
    return SoftTokens(of.size, of.form, of.tokens, of.frames, of.token, sound=sound)


def media_window(c: ModelConfig, reads: str, length: int) -> dict[str, np.ndarray]:
    """The fields that a window of the layout `reads` has beside tokens, as zeros: what a batch is
    planned with. ValueError for a model without an encoder."""
    soft = soft_tokens(c)
    if soft is None:
        raise ValueError(
            f"the objective reads {reads} and the model has no encoder of images or sounds; set "
            "config.model.image or config.model.sound"
        )
    fields = {"whole": np.ones(1, np.int32), **soft.empty(length)}
    if reads == "captions" and soft.size:  # one picture a text
        fields["images"] = fields["images"][: soft.frames]
    return fields
