"""Mixture of experts: a feed-forward layer that multiplies each token by a few of many experts, and
in Qwen 2 by one more that all tokens share.

Letters: B batch, T time, D model, F feed-forward, E experts, k experts of a token.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from research.models.config import LayerLosses, ModelConfig
from research.models.initial import Initial, initial
from research.models.layers import ACTIVATIONS, mlp, mlp_specs
from research.models.spec import Spec
from research.ops import route
from research.ops.einsum import einsum
from research.scopes import scope
from research.tree import Tree


def moe_specs(c: ModelConfig, start: Initial) -> Tree:
    """Gate and up [E, D, F], down [E, F, D] and router [D, E]; with `shared_d_ff` the matrices of
    the shared expert, `shared`, and its switch, `shared_gate` [D, 1]."""
    D, F, E = c.d_model, c.d_ff, c.experts
    # Experts lie behind one leading axis, so that a grouped product or a mesh axis can split them.
    specs = {
        "up": Spec((E, D, F), ("experts", "embed", "mlp"), start.up),
        "down": Spec((E, F, D), ("experts", "mlp", "embed"), start.down),
        "gate": Spec((E, D, F), ("experts", "embed", "mlp"), start.up),
        "router": Spec((D, E), ("embed", "routes"), start.router),
    }
    if c.shared_d_ff:
        # Some initialisers depend on the width.
        shared = replace(c, d_ff=c.shared_d_ff)
        specs["shared"] = mlp_specs(shared, initial(shared))
        specs["shared_gate"] = Spec((D, 1), ("embed", "routes"), start.router)
    return specs


def moe(
    p: Tree,
    x_BTD: jax.Array,
    c: ModelConfig,
    counted_BT: jax.Array,
    implementation: str = "auto",
) -> tuple[jax.Array, LayerLosses]:
    """(output of the mixture of experts [B, T, D], its router's losses by name). `counted_BT` is 1
    for the tokens that the losses count and 0 for padding."""
    # The router computes in float32, for stable training (arXiv:2101.03961, section 2.4).
    with scope("routing"):
        logits_BTE = einsum("BTD,DE->BTE", x_BTD.astype(jnp.float32), p["router"])
    # k experts for each token, and their weights in the sum of what they give.
    weights_BTk, ids_BTk = route.top_k(logits_BTE, c.experts_per_token, c.normalized_routes)
    y_BTD = route.experts(
        x_BTD,
        weights_BTk,
        ids_BTk,
        *(p[name] for name in ("gate", "up", "down")),
        ACTIVATIONS[c.activation],
        implementation,
    )
    if c.shared_d_ff:
        y_BTD = y_BTD + _shared(p, x_BTD, c)
    return y_BTD, {"router_balance": route.load_balance(logits_BTE, ids_BTk, counted_BT)}


@scope("mlp")
def _shared(p: Tree, x_BTD: jax.Array, c: ModelConfig) -> jax.Array:
    """What the shared expert adds for every token, [B, T, D]: its output times a number in 0..1
    that the token itself decides (Qwen1.5-MoE)."""
    # One logit a token, an E of 1.
    logits_BTE = einsum("BTD,DE->BTE", x_BTD, p["shared_gate"])
    return jax.nn.sigmoid(logits_BTE) * mlp(p["shared"], x_BTD, c)
