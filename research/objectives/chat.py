"""Supervised fine-tuning on conversations: predict what the assistant says, given all that was said
before."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from research.objectives.causal_lm import CausalLM
from research.objectives.config import TokenLossConfig

LOSS_ON = ("assistant", "all")


@dataclass(frozen=True)
class ChatConfig(TokenLossConfig):
    """`loss_on`: "assistant" learns what the assistant says; "all" learns every token of a
    conversation, the template's and the user's too."""

    name: str = field(default="chat", init=False)
    loss_on: str = "assistant"

    def __post_init__(self):
        super().__post_init__()
        if self.loss_on not in LOSS_ON:
            raise ValueError(
                f"objective.loss_on={self.loss_on!r}; choose one of {', '.join(LOSS_ON)}"
            )


@dataclass(frozen=True)
class Chat(CausalLM):
    """Causal language modelling on whole conversations, with the loss on the assistant's tokens.

    System, user and tool messages are read, and predicted only with `loss_on` "all".
    """

    loss_on: str = "assistant"

    name = "chat"
    config = ChatConfig
    reads = "conversations"
    overlap = 0  # conversations are packed whole, so windows share nothing
    answers_chats = True
    bits_per_byte = False  # what the others say is not predicted

    @classmethod
    def make(cls, config: Any, tokenizer: Any) -> "Chat":
        """The objective with the settings of `config`; the tokenizer needs a chat template."""
        return cls(config.label_smoothing, config.z_loss, config.loss_on)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets, weights (1 where the target is the assistant's, or anyone's),
        segments, positions, each [T]."""
        # Weights of a causal example are 0 at the seams of packed texts, and stay so.
        example = super().example(window, rng)
        if self.loss_on == "all":
            return example
        # `assistant` marks tokens of the window, so that of a target stands one place further on.
        return example | {"weights": example["weights"] * window["assistant"][1:]}
