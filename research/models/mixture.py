"""Mixture of experts: a feed-forward layer that multiplies each token by a few of many experts, and
in Qwen 2 and DeepSeek by one more that all tokens share.

Letters: B batch, T time, D model, F feed-forward, E experts, k experts of a token.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from research.models.config import LayerLosses, ModelConfig
from research.models.initial import Initial, initial
from research.models.layers import ACTIVATIONS, mlp, mlp_specs
from research.models.spec import Spec, zeros
from research.ops import route
from research.ops.einsum import einsum
from research.ops.gate import Gate
from research.scopes import scope
from research.tree import Tree


def moe_specs(c: ModelConfig, start: Initial) -> Tree:
    """Gate and up [E, D, F], down [E, F, D] and router [D, E], under sigmoids with a bias [E]; with
    `shared_d_ff` the matrices of the shared expert, `shared`, and with `shared_gate` its switch
    [D, 1]."""
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
    if c.shared_d_ff and c.shared_gate:
        specs["shared_gate"] = Spec((D, 1), ("embed", "routes"), start.router)
    if c.router == "sigmoid":
        # No gradient reaches it, and no decay: training keeps it. DeepSeek moves it against the
        # load of each expert (arXiv:2408.15664), which nothing here does.
        specs["router_bias"] = Spec((E,), ("routes",), zeros, kind="constant")
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
    gate = Gate(
        c.experts_per_token,
        c.normalized_routes,
        c.router,
        c.route_groups,
        c.groups_per_token,
        c.route_scale,
    )
    weights_BTk, ids_BTk = gate.choose(logits_BTE, p.get("router_bias"))
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
    if c.router == "sigmoid":
        # Their softmax are the sigmoids divided by their sum (arXiv:2412.19437, equation 19).
        logits_BTE = jax.nn.log_sigmoid(logits_BTE)
    return y_BTD, {"router_balance": route.load_balance(logits_BTE, ids_BTk, counted_BT)}


@scope("mlp")
def _shared(p: Tree, x_BTD: jax.Array, c: ModelConfig) -> jax.Array:
    """What the shared expert adds for every token, [B, T, D]: its output, with `shared_gate` times
    a number in 0..1 that the token itself decides (Qwen1.5-MoE)."""
    if not c.shared_gate:
        return mlp(p["shared"], x_BTD, c)
    # One logit a token, an E of 1.
    logits_BTE = einsum("BTD,DE->BTE", x_BTD, p["shared_gate"])
    return jax.nn.sigmoid(logits_BTE) * mlp(p["shared"], x_BTD, c)
