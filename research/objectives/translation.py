"""Translation: the text of a pair from the other (arXiv:1706.03762)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from research.models.model import Model
from research.objectives.config import TokenLossConfig
from research.objectives.objective import Objective, Totals
from research.objectives.pairs import decoder_start, pair_example
from research.objectives.tokens import token_loss
from research.tree import Tree


@dataclass(frozen=True)
class TranslationConfig(TokenLossConfig):
    """No settings beside those of the loss."""

    name: str = field(default="translation", init=False)


@dataclass(frozen=True)
class Translation(Objective):
    """Teacher forcing (arXiv:1706.03762): the target text is predicted from the source text and its
    own past.

    A window holds one or more pairs, as `research.data.pairs.PackedPairs` lays them out.
    """

    start_id: int
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    name = "translation"
    config = TranslationConfig
    model_kind = "encoder_decoder"
    reads = "pairs"
    overlap = 0
    begins_texts = False
    answers_chats = False
    classifies = False
    reports = ()
    bits_per_byte = False

    @classmethod
    def make(cls, config: TokenLossConfig, tokenizer: Any) -> "Translation":
        """Nothing is asked of the tokenizer."""
        return cls(decoder_start(tokenizer), config.label_smoothing, config.z_loss)

    def window_length(self, sequence_length: int) -> int:
        """S tokens of source and as many of target."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """All positions of the decoder."""
        return float(sequence_length)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """encoder_inputs and the like [S], inputs, targets and the like [T]."""
        segments = range(1, int(window["targets_segments"].max(initial=0)) + 1)
        source, target = (
            [window[side][window[f"{side}_segments"] == segment] for segment in segments]
            for side in ("inputs", "targets")
        )
        return pair_example(
            source, target, len(window["inputs"]), len(window["targets"]), self.start_id
        )

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of nats over the target texts, the count of their tokens, and the pair "nll"."""
        return token_loss(model, trainable, held, batch, key, self.label_smoothing, self.z_loss)
