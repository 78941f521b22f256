"""Reward models: a number for a prompt with its answer, learnt from which of two answers people
preferred."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.data.preference_windows import most_pairs
from research.models.heads import class_logits
from research.models.model import Model
from research.objectives.config import ObjectiveConfig
from research.objectives.objective import Objective, Totals
from research.objectives.sides import side_sums
from research.objectives.tokens import with_layer_losses
from research.tree import Tree
from research.weights.rules import attach


@dataclass(frozen=True)
class RewardConfig(ObjectiveConfig):
    """Settings of reward models.

    reward_margin  how much higher the chosen answer's reward should be, m (arXiv:2307.09288,
                   section 3.2.2), in addition to the "margin" of the pair's own record
    centring       weight of the squared sum of both rewards, which keeps them around 0
                   (arXiv:2312.09244, section 3); pairs alone leave that open
    """

    name: str = field(default="reward", init=False)
    reward_margin: float = 0.0
    centring: float = 0.0

    def __post_init__(self):
        for name in ("reward_margin", "centring"):
            # Written so that NaN, which compares with nothing, is refused too.
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"objective.{name}={getattr(self, name)} must be a number of at least 0"
                )


@dataclass(frozen=True)
class Reward(Objective):
    """The model of Bradley and Terry (1952; arXiv:2203.02155, equation 1): the odds that an answer
    is preferred are e to the difference of two rewards. A reward is read from the state of the last
    token of the prompt with its answer.

    The loss is a mean over pairs, -log sigmoid(r+ - r- - m) + c (r+ + r-)^2. The totals are means
    over pairs, too: "margin" r+ - r-, "accuracy", the share of pairs whose margin is above 0, and
    "chosen" and "rejected", the rewards.
    """

    margin: float = 0.0
    centring: float = 0.0

    name = "reward"
    config = RewardConfig
    model_kind = "decoder"
    reads = "preferences"
    overlap = 0  # windows hold whole pairs
    begins_texts = True
    # Prompts go through the chat template, though nothing is written.
    answers_chats = True
    classifies = False
    scores_texts = True
    reports = ("margin", "accuracy")
    bits_per_byte = False  # no token is predicted

    @classmethod
    def make(cls, config: RewardConfig, tokenizer: Any) -> "Reward":
        """The objective with the settings of `config`; the tokenizer needs a chat template."""
        return cls(config.reward_margin, config.centring)

    def window_length(self, sequence_length: int) -> int:
        """T tokens: none is a target only."""
        return sequence_length

    def predicted_tokens(self, sequence_length: int) -> float:
        """0: no token is predicted, a score is read from each text."""
        return 0.0

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """inputs, targets (the inputs), weights (1 on the last token of each text), segments (1, 3,
        ... with the chosen answers, 2, 4, ... with the rejected ones), positions, and of records
        that have one the pair's margin, each [T]."""
        segments = window["segments"]
        last = (segments != np.append(segments[1:], 0)) & (segments > 0)
        example = {
            "inputs": window["tokens"],
            "targets": window["tokens"],
            "weights": last.astype(np.float32),
            "segments": segments,
            "positions": window["positions"],
        }
        return example | {name: window[name] for name in ("margins",) if name in window}

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of the losses of the pairs in nats, their number, the totals of the class."""
        params = attach(held["base"], trainable, key)
        hidden_BTD, layer_losses = model.hidden(params, batch, key)
        # Of every token: that costs one more row of a matrix, and shapes are fixed.
        rewards_BT = class_logits(params, hidden_BTD)[:, :, 0]
        chosen_BP, rejected_BP, real_BP = pairs(rewards_BT, batch)
        count = jnp.sum(real_BP)
        margin_BP = chosen_BP - rejected_BP
        wanted_BP = jnp.full_like(margin_BP, self.margin)
        if "margins" in batch:
            # Weights are 1 at one token of a text, so a sum is the value there.
            wanted_BP += side_sums(batch["margins"], batch, margin_BP.shape[1])[0]
        losses_BP = -jax.nn.log_sigmoid(margin_BP - wanted_BP)
        losses_BP += self.centring * (chosen_BP + rejected_BP) ** 2
        total, totals = with_layer_losses(
            model.config, layer_losses, jnp.sum(losses_BP * real_BP), count
        )
        means = {
            "margin": margin_BP,
            "accuracy": (margin_BP > 0).astype(jnp.float32),
            "chosen": chosen_BP,
            "rejected": rejected_BP,
        }
        sums = {name: (jnp.sum(x_BP * real_BP), count) for name, x_BP in means.items()}
        return total, count, {**jax.lax.stop_gradient(sums), **totals}


def pairs(
    rewards_BT: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(rewards of the chosen answers, of the rejected ones, 1 where there is a pair), each [B, P]:
    P is the most pairs that a row of its length may have."""
    most = most_pairs(batch["segments"].shape[1])
    chosen_BP, rejected_BP = side_sums(rewards_BT, batch, most)
    first_BP, second_BP = side_sums(jnp.ones_like(rewards_BT), batch, most)
    return chosen_BP, rejected_BP, first_BP * second_BP
