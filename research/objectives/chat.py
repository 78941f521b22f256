"""Supervised fine-tuning on conversations: predict what the assistant says, given all that was said
before."""

from dataclasses import dataclass, field

import numpy as np

from research.objectives.causal_lm import CausalLM
from research.objectives.config import TokenLossConfig


@dataclass(frozen=True)
class ChatConfig(TokenLossConfig):
    """The settings of the loss over tokens; chat has none of its own."""

    name: str = field(default="chat", init=False)


@dataclass(frozen=True)
class Chat(CausalLM):
    """Causal language modelling on whole conversations, with the loss on the assistant's tokens.

    System, user and tool messages are read, and never predicted.
    """

    name = "chat"
    config = ChatConfig
    reads = "conversations"
    overlap = 0  # conversations are packed whole, so windows share nothing
    answers_chats = True
    bits_per_byte = False  # what the others say is not predicted

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights (1 where the target is the assistant's), segments, positions,
        each [T]."""
        # Weights of a causal example are 0 at the seams of packed texts, and stay so.
        example = super().example(window, rng)
        # `assistant` marks tokens of the window, so that of a target stands one place further on.
        return example | {"weights": example["weights"] * window["assistant"][1:]}
