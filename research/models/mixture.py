"""Mixture of experts: a feed-forward layer that multiplies each token by a few of many experts, and
in Qwen 2 and DeepSeek by one more that all tokens share.

Letters: B batch, T time, D model, F feed-forward, E experts, k experts of a token.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from research.models.config import LayerLosses, ModelConfig
from research.models.initial import Initial, initial
from research.models.layers import gated, mlp, mlp_specs
from research.models.spec import Spec, zeros
from research.ops import route
from research.ops.einsum import add_bias, einsum
from research.ops.gate import Gate
from research.scopes import scope
from research.tree import Tree


def moe_specs(c: ModelConfig, start: Initial) -> Tree:
    """Gate and up [E, D, F], down [E, F, D] and router [D, E]; biases of the former with
    `mlp_bias`, of the router with `router_logit_bias`, and under sigmoids one of the choice,
    `router_bias`. With `shared_d_ff` the matrices of the shared expert, `shared`, and with
    `shared_gate` its switch [D, 1]."""
    D, F, E = c.d_model, c.d_ff, c.experts
    # Experts lie behind one leading axis, so that a grouped product or a mesh axis can split them.
    specs = {
        "up": Spec((E, D, F), ("experts", "embed", "mlp"), start.up),
        "down": Spec((E, F, D), ("experts", "mlp", "embed"), start.down),
        "gate": Spec((E, D, F), ("experts", "embed", "mlp"), start.up),
        "router": Spec((D, E), ("embed", "routes"), start.router),
    }
    if c.mlp_bias:
        for name in ("up", "gate"):
            specs[f"{name}_bias"] = Spec((E, F), ("experts", "mlp"), zeros)
        # Whole on every device, as the router is, by whose choice its rows are summed.
        specs["down_bias"] = Spec((E, D), ("routes", "vector"), zeros, kind="vector")
    if c.router_logit_bias:
        specs["router_logit_bias"] = Spec((E,), ("routes",), zeros)
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
        if c.router_logit_bias:
            logits_BTE = add_bias(logits_BTE, p["router_logit_bias"])
    # k experts for each token, and their weights in the sum of what they give.
    gate = Gate(
        c.experts_per_token,
        c.normalized_routes,
        c.router,
        c.route_groups,
        c.groups_per_token,
        c.route_scale,
        c.router_jitter,
    )
    weights_BTk, ids_BTk = gate.choose(logits_BTE, p.get("router_bias"))
    y_BTD = route.experts(
        x_BTD,
        weights_BTk,
        ids_BTk,
        *(p[name] for name in ("gate", "up", "down")),
        partial(gated, c),
        implementation,
        tuple(p[name] for name in ("gate_bias", "up_bias") if name in p),
    )
    if c.mlp_bias:
        y_BTD = y_BTD + _down_bias(p["down_bias"], weights_BTk, ids_BTk, x_BTD.dtype)
    if c.shared_d_ff:
        y_BTD = y_BTD + _shared(p, x_BTD, c)
    if c.router == "sigmoid":
        # Their softmax are the sigmoids divided by their sum (arXiv:2412.19437, equation 19).
        logits_BTE = jax.nn.log_sigmoid(logits_BTE)
    return y_BTD, {"router_balance": route.load_balance(logits_BTE, ids_BTk, counted_BT)}


@scope("routing")
def _down_bias(
    bias_ED: jax.Array, weights_BTk: jax.Array, ids_BTk: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """The biases of a token's experts, weighted and summed, [B, T, D]."""
    # Outside the experts' products, whose results are summed over the mesh: a bias would be added
    # once by each device.
    chosen_BTkE = jax.nn.one_hot(ids_BTk, bias_ED.shape[0]) * weights_BTk[..., None]
    return einsum("BTE,ED->BTD", jnp.sum(chosen_BTkE, axis=2).astype(dtype), bias_ED)


@scope("mlp")
def _shared(p: Tree, x_BTD: jax.Array, c: ModelConfig) -> jax.Array:
    """What the shared expert adds for every token, [B, T, D]: its output, with `shared_gate` times
    a number in 0..1 that the token itself decides (Qwen1.5-MoE)."""
    if not c.shared_gate:
        return mlp(p["shared"], x_BTD, c)
    # One logit a token, an E of 1.
    logits_BTE = einsum("BTD,DE->BTE", x_BTD, p["shared_gate"])
    return jax.nn.sigmoid(logits_BTE) * mlp(p["shared"], x_BTD, c)
