"""Conversations with pictures, sounds and videos: captions, questions about them, instructions."""

from dataclasses import dataclass, field

import numpy as np

from research.objectives.chat import Chat, ChatConfig


@dataclass(frozen=True)
class MediaChatConfig(ChatConfig):
    """The settings of `ChatConfig`."""

    name: str = field(default="media_chat", init=False)


@dataclass(frozen=True)
class MediaChat(Chat):
    """Supervised fine-tuning on conversations with media, whose soft tokens are read and never
    predicted."""

    name = "media_chat"
    config = MediaChatConfig
    reads = "media"

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """What `Chat` gives, and images [M, size, size, 3] and sounds [M, frames, mels] of models
        that read them."""
        # The window's last token is a target only. Where it was the place of a soft token, the
        # block before it is whole all the same, since windows cut none.
        media = {name: window[name] for name in ("images", "sounds") if name in window}
        return {**super().example(window, rng), **media}
