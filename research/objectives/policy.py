"""Policy gradients on texts that the model has written itself: GRPO and its family, and PPO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import ModelConfig
from research.models.model import Model
from research.models.spec import Spec, zeros
from research.objectives.gae import advantages_of_values
from research.objectives.log_probabilities import token_scores
from research.objectives.next_token import batch_scores
from research.objectives.objective import REFERENCE, Totals
from research.objectives.policy_config import PolicyConfig
from research.objectives.policy_losses import LOSSES, Clip, PolicyLoss, k3, text_mean
from research.objectives.tokens import with_layer_losses
from research.objectives.written import Written
from research.ops.einsum import add_bias, einsum
from research.tree import Tree
from research.weights.rules import attach

VALUE = "value"  # the name of the value head in the tree that is trained


@dataclass(frozen=True)
class Policy(Written):
    """Makes a token likelier the better its text was rewarded against others of its prompt.

    A window has the fields of `Written`, and for each token "advantages" and "group_tokens", the
    written tokens of all texts of its prompt.

    The totals are "kl", k3 from the reference model (without a `kl_weight`, which holds none, from
    the weights that wrote the text), "entropy" of the next token in nats, and "clipped", the share
    of tokens that the bounds of the ratio cut. All are means over written tokens.

    With the advantage "gae" a value head reads from the state before each written token what reward
    the text will have, and the loss gets half the squared difference from what the text had
    (A + V), times `value_weight`; both have their gradient in the whole model. The values are those
    of the weights that are trained, also where these have moved since the texts were written
    (arXiv:2006.05990 recommends that): so none is kept with a text, and none is clipped. The totals
    are "value" and "value_loss" too. The head is the objective's own: a model that is exported,
    served or started from has none.
    """

    recipe: PolicyLoss = LOSSES["dapo"]
    clip: Clip = LOSSES["dapo"].clip
    average: str = LOSSES["dapo"].average
    kl_weight: float = 0.0
    has_values: bool = False
    discount: float = PolicyConfig.discount
    gae_decay: float = PolicyConfig.gae_decay
    value_weight: float = PolicyConfig.value_weight
    holds: tuple[str, ...] = ()  # type: ignore[misc]  # the reference is held where it is used

    name = "policy"
    config: ClassVar[type[PolicyConfig]] = PolicyConfig

    @classmethod
    def make(cls, config: PolicyConfig, tokenizer: Any) -> "Policy":
        """The objective of the config's loss; works with every tokenizer."""
        return cls(
            recipe=LOSSES[config.policy_loss],
            clip=config.clip,
            average=config.average or LOSSES[config.policy_loss].average,
            kl_weight=config.kl_weight,
            has_values=config.has_values,
            discount=config.discount,
            gae_decay=config.gae_decay,
            value_weight=config.value_weight,
            max_tokens=config.max_tokens,
            rewards=config.rewards,
            temperature=config.temperature,
            holds=(REFERENCE,) if config.kl_weight else (),
        )

    @classmethod
    def own_specs(cls, config: PolicyConfig, model: ModelConfig) -> Tree:
        """The value head, a layer [D, 1] with a bias, 0 before the first step."""
        if not config.has_values:
            return {}
        kernel = Spec((model.d_model, 1), ("embed", "label"), zeros)
        return {VALUE: {"kernel": kernel, "bias": Spec((1,), ("label",), zeros)}}

    def example(
        self, window: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The fields of `Written.example`, advantages and shares, each [T]. The shares of a text,
        or with the average "prompt" of a prompt, sum to 1; with "token" each is 1."""
        example = super().example(window, rng)
        segments, weights = window["segments"][1:], example["weights"]
        written = np.bincount(segments, weights).astype(np.float32)[segments]
        if self.average == "prompt" and "group_tokens" in window:
            written = window["group_tokens"][1:].astype(np.float32)
        share = np.ones_like(weights) if self.average == "token" else 1 / np.maximum(written, 1)
        advantages = window.get("advantages", np.zeros(len(segments) + 1))[1:]
        return {
            **example,
            "advantages": advantages.astype(np.float32),
            "shares": weights * share,
        }

    def loss(
        self,
        model: Model,
        trainable: Tree,
        held: Mapping[str, Tree],
        batch: dict[str, jax.Array],
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Totals]:
        """Sum of the costs by their shares, the sum of the shares, and the totals of the class."""
        params = attach(held["base"], trainable, key)
        hidden_BTD, layer_losses = model.hidden(params, batch, key)
        scores = token_scores(model, params, hidden_BTD, batch["targets"], self.temperature)
        weights_BT = batch["weights"]
        # Padding has log-probabilities of arbitrary size, whose exponentials must not be infinite.
        logp_BT = jnp.where(weights_BT > 0, scores.logp, 0.0)
        sampled_BT = batch["sampled"] * weights_BT
        log_ratio_BT = logp_BT - sampled_BT
        if self.recipe.whole_texts:
            log_ratio_BT = text_mean(log_ratio_BT, weights_BT, batch["segments"])
        advantages_BT, means = batch["advantages"], {}
        if self.has_values:
            advantages_BT, means = self._against_values(params, hidden_BTD, batch)
        costs_BT = self.recipe.surrogate(logp_BT, log_ratio_BT, advantages_BT, self.clip)
        if self.has_values:
            costs_BT += self.value_weight * means["value_loss"]
        beside_BT = jax.lax.stop_gradient(sampled_BT)
        if self.kl_weight:
            beside = attach(held["base"], jax.lax.stop_gradient(held[REFERENCE]))
            at = {"temperature": self.temperature}
            beside_BT = jax.lax.stop_gradient(batch_scores(model, beside, batch, **at)[0].logp)
        kl_BT = k3(logp_BT, jnp.where(weights_BT > 0, beside_BT, 0.0))
        costs_BT += self.kl_weight * kl_BT
        shares_BT = batch["shares"] * weights_BT
        count = jnp.sum(shares_BT)
        parts_BT = weights_BT / self.max_tokens if self.average == "constant" else shares_BT
        total, totals = with_layer_losses(
            model.config, layer_losses, jnp.sum(costs_BT * parts_BT), count
        )
        cut_BT = self.recipe.cut(log_ratio_BT, advantages_BT, self.clip)
        tokens = jnp.sum(weights_BT)
        means = {"kl": kl_BT, "entropy": scores.entropy, "clipped": cut_BT, **means}
        sums = {name: (jnp.sum(x_BT * weights_BT), tokens) for name, x_BT in means.items()}
        return total, count, {**jax.lax.stop_gradient(sums), **totals}

    def _against_values(
        self, params: Tree, hidden_BTD: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(advantages [B, T], which have no gradient, and by name "value" and "value_loss" of each
        token [B, T])."""
        p = params[VALUE]
        values_BTV = einsum("BTD,DV->BTV", hidden_BTD, p["kernel"])
        values_BT = add_bias(values_BTV, p["bias"]).astype(jnp.float32)[:, :, 0]
        fixed_BT = jax.lax.stop_gradient(values_BT)
        advantages_BT = advantages_of_values(
            fixed_BT,
            batch["advantages"],
            batch["weights"],
            batch["segments"],
            self.discount,
            self.gae_decay,
        )
        missed_BT = values_BT - (advantages_BT + fixed_BT)
        return advantages_BT, {"value": values_BT, "value_loss": missed_BT**2 / 2}
