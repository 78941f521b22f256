"""Contrastive training of pictures and their texts by SigLIP's loss (arXiv:2303.15343)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.models.model import Model
from research.models.pair_vectors import vectors
from research.objectives.config import ObjectiveConfig
from research.objectives.objective import Objective, Totals
from research.ops.einsum import contract
from research.ops.sigmoid_loss import sigmoid_loss
from research.parallel.placement import gather_axis
from research.tree import Tree
from research.weights.rules import attach


@dataclass(frozen=True)
class ContrastiveConfig(ObjectiveConfig):
    """A score is `scale` times the cosine minus `offset`: the paper's temperature and bias before
    its first step (section 3.2), which it goes on to learn; here they stay."""

    name: str = field(default="contrastive", init=False)
    scale: float = 10.0
    offset: float = 10.0

    def __post_init__(self):
        # Written so that NaN, which compares with nothing, is refused too.
        if not 0 < self.scale < math.inf:
            raise ValueError(f"objective.scale={self.scale} must be a number above 0")
        if not 0 <= self.offset < math.inf:
            raise ValueError(f"objective.offset={self.offset} must be a number of at least 0")


@dataclass(frozen=True)
class Contrastive(Objective):
    """Brings the vector of a picture near that of its text and away from the others of the batch.

    A text's vector is the state of its last token, the end of the text, as CLIP has it
    (arXiv:2103.00020, section 2.4), a picture's the mean of its soft tokens; both have length 1 and
    the width of the model. The loss is a mean over pictures of a sum over the
    batch's texts, so it grows with the batch. The totals "image_to_text" and "text_to_image" are
    the shares of rows whose own partner scores highest in the batch, recall at 1 of both ways.
    """

    scale: float = 10.0
    offset: float = 10.0

    name = "contrastive"
    config = ContrastiveConfig
    model_kind = "decoder"
    reads = "captions"
    overlap = 0  # every row is a text of its own
    begins_texts = True
    answers_chats = False
    classifies = False
    reports = ("image_to_text", "text_to_image")
    bits_per_byte = False  # no token is predicted
    whole_batch = True  # every row is compared with all others

    @classmethod
    def make(cls, config: ContrastiveConfig, tokenizer: Any) -> "Contrastive":
        """The objective of the config; works with every tokenizer."""
        return cls(config.scale, config.offset)

    def window_length(self, sequence_length: int) -> int:
        """T tokens, with those that begin and end a text."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """0: no token is predicted."""
        return 0.0

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, segments, positions, each [T]; images; weights [1], 0 for a picture that is
        broken; targets [1], which nothing reads."""
        text = {name: window[name] for name in ("segments", "positions", "images")}
        whole = window["whole"].astype(np.float32)
        return {**text, "inputs": window["tokens"], "targets": window["whole"], "weights": whole}

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of the losses of all pairs in nats, the pictures, the totals of the class."""
        params = attach(held["base"], trainable, key)
        images_BD, texts_BD = vectors(model, params, batch, key)
        weights_B = batch["weights"][:, 0]
        total = sigmoid_loss(images_BD, texts_BD, weights_B, self.scale, -self.offset)
        count = jnp.sum(weights_B)
        sides = jax.lax.stop_gradient((images_BD, texts_BD))
        first, second = ((jnp.sum(found(*pair, weights_B)), count) for pair in (sides, sides[::-1]))
        return total, count, {"image_to_text": first, "text_to_image": second}


def found(queries_BD: jax.Array, keys_BD: jax.Array, weights_B: jax.Array) -> jax.Array:
    """1.0 [B] for each query whose own key, that of its row, scores highest among the batch's keys
    of weight 1; 0 for queries of weight 0."""
    keys_SD, counted_S = gather_axis(keys_BD, axis=0), gather_axis(weights_B, axis=0)
    scores_BS = contract("BD,SD->BS", queries_BD, keys_SD)
    own_B = jnp.sum(queries_BD * keys_BD, axis=1)
    # Its own score as this product has it may differ in the last digit; ties are not better.
    better_BS = (scores_BS > own_B[:, None] + 1e-6) & (counted_S[None, :] > 0)
    return (~jnp.any(better_BS, axis=1)).astype(jnp.float32) * weights_B
