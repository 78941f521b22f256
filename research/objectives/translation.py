"""Translation: predict the second text of a pair from the first (arXiv:1706.03762)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from research.data.tokenizers.special import decoder_start
from research.models.model import Model
from research.objectives.config import TokenLossConfig
from research.objectives.objective import Objective, Totals
from research.objectives.pairs import pair_example
from research.objectives.tokens import token_loss
from research.tree import Tree


@dataclass(frozen=True)
class TranslationConfig(TokenLossConfig):
    """The settings of the loss over tokens; translation has none of its own."""

    name: str = field(default="translation", init=False)


@dataclass(frozen=True)
class Translation(Objective):
    """Predicts each token of the target text from the source text and the target tokens before it
    (teacher forcing).

    A window holds one or more pairs, laid out by `research.data.pairs.PackedPairs`.
    """

    start_id: int
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    name = "translation"
    config = TranslationConfig
    model_kind = "encoder_decoder"
    reads = "pairs"
    overlap = 0  # windows hold whole pairs
    # The decoder has a start token of its own, and the encoder needs none.
    begins_texts = False
    answers_chats = False
    classifies = False
    reports = ()
    bits_per_byte = False  # only the targets are predicted

    @classmethod
    def make(cls, config: TokenLossConfig, tokenizer: Any) -> "Translation":
        """The objective with the loss settings of `config`; the tokenizer must have an end of
        text."""
        # The target's end is part of the pair already, see `research.data.pairs`.
        return cls(decoder_start(tokenizer), config.label_smoothing, config.z_loss)

    def window_length(self, sequence_length: int) -> int:
        """S tokens of source, and as many of target."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """All positions of the decoder."""
        return float(sequence_length)

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """encoder_inputs and the other encoder fields [S]; inputs, targets, weights and the other
        decoder fields [T]."""
        # Pairs of a window have equal segment numbers on both sides.
        segments = range(1, int(window["targets_segments"].max(initial=0)) + 1)
        source, target = (
            [window[side][window[f"{side}_segments"] == segment] for segment in segments]
            for side in ("inputs", "targets")
        )
        # The pairs are laid out anew, because the decoder's inputs are each target moved by one
        # within its own pair and not within the row.
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
        """(sum of the loss over the tokens of the target texts in nats, their number, totals)."""
        return token_loss(model, trainable, held, batch, key, self.label_smoothing, self.z_loss)
