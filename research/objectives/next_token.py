"""What the objectives share whose examples are a window's tokens and, one place on, the same tokens
as targets."""

from typing import Any

import jax

from research.models.config import LayerLosses
from research.models.model import Model
from research.objectives.log_probabilities import TokenScores, token_scores
from research.objectives.objective import Objective
from research.tree import Tree


class NextToken(Objective):
    """Objectives of decoders that score each token given those before it in its text."""

    model_kind = "decoder"
    begins_texts = True
    classifies = False

    def window_length(self, sequence_length: int) -> int:
        """T + 1 tokens: the last is a target only."""
        return sequence_length + 1

    def predicted_tokens(self, sequence_length: int) -> float:
        """`sequence_length`: every position has a target."""
        # Not all of them count, but the head computes their logits all the same.
        return float(sequence_length)


def batch_scores(
    model: Model,
    params: Tree,
    batch: dict[str, jax.Array],
    key: Any = None,
    temperature: float = 1.0,
) -> tuple[TokenScores, LayerLosses]:
    """(log-probability and entropy of each target of a batch at a temperature, losses of the
    layers); `key` is that of dropout."""
    hidden_BTD, layer_losses = model.hidden(params, batch, key)
    scores = token_scores(model, params, hidden_BTD, batch["targets"], temperature)
    return scores, layer_losses
