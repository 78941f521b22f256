"""Projectors: what makes soft tokens of an encoder's states, in the width of the decoder.

    linear   a layer with a bias (PaliGemma, arXiv:2407.07726)
    mlp      two layers with GELU between them (LLaVA 1.5, arXiv:2310.03744)
    shuffle  the states of merge x merge patches side by side, then a layer (Idefics 3,
             arXiv:2408.12637)
    pool     their mean, an RMS norm, then a layer (Gemma 3, arXiv:2503.19786)
    class    one vector: the class token's state and a layer (CLIP, arXiv:2103.00020)
    attend   one vector: what a learned query sees, and a feed-forward layer beside it (SigLIP,
             arXiv:2303.15343)

Letters: I images, P patches, E width of what is projected, D width of the decoder, g patches of a
side over `merge`, m `merge`.
"""

import math

import jax
import jax.numpy as jnp

from research.models import layers
from research.models.image_config import ImageConfig
from research.models.initial import initial
from research.models.spec import Spec, constant, normal, zeros
from research.models.vit import tower
from research.ops.attention import Visibility
from research.ops.einsum import add_bias, einsum
from research.ops.norm import rms_norm
from research.parallel.placement import (
    gather,
    merge_axes,
    partition_spec,
    reshard_to,
    split_axis,
)
from research.scopes import scope
from research.tree import Tree

_EPS, _OFFSET = 1e-6, 1.0  # of the norm, as in Gemma's layers


def projector_specs(c: ImageConfig, d_model: int) -> Tree:
    """The matrices `kernel` [E, D] or `up` [E, D] and `down` [D, D], their biases, and `norm` [E],
    as the projector has them."""
    if c.pools:
        return _pooler_specs(c, d_model)
    width = c.d_model * (c.merge**2 if c.projector == "shuffle" else 1)
    specs = layers_specs(width, d_model, hidden=c.projector == "mlp")
    if c.projector in ("shuffle", "pool"):
        del specs["bias"]
    if c.projector == "pool":
        specs["norm"] = {"scale": Spec((width,), ("vector",), constant(1 - _OFFSET))}
    return specs


def layers_specs(width: int, d_model: int, hidden: bool) -> Tree:
    """A layer with a bias from E = `width` to D, `kernel` [E, D] and `bias`, or two with GELU
    between them, `up` [E, D] and `down` [D, D], and their biases."""

    def _matrix(inputs: int) -> Spec:
        return Spec((inputs, d_model), ("position", "embed"), normal(inputs**-0.5))

    bias = Spec((d_model,), ("vector",), zeros)
    if not hidden:
        return {"kernel": _matrix(width), "bias": bias}
    specs = {"up": _matrix(width), "up_bias": bias}
    return specs | {"down": _matrix(d_model), "down_bias": bias}


def _pooler_specs(c: ImageConfig, d_model: int) -> Tree:
    # Scores of pairs are cos * exp(logit_scale) + logit_bias, from the papers' first values.
    specs: Tree = {"logit_scale": Spec((1,), ("vector",), constant(math.log(10.0)))}
    if c.projector == "class":
        kernel = Spec((c.d_model, d_model), ("position", "embed"), normal(c.d_model**-0.5))
        return specs | {"kernel": kernel}
    of = tower(c)
    start = initial(of)
    return specs | {
        "logit_bias": Spec((1,), ("vector",), constant(-10.0)),
        "probe": Spec((1, c.d_model), ("position", "embed"), normal(1.0)),
        "attention": layers.attention_specs(of, start),
        "mlp_norm": layers.norm_specs(of),
        "mlp": layers.mlp_specs(of, start),
    }


@scope("encoder")
def pool(p: Tree, states_IPD: jax.Array, c: ImageConfig) -> jax.Array:
    """One vector for each image, [I, 1, D], of the states behind the last norm, the class token's
    among them where the form has one."""
    if c.projector == "class":
        return einsum("IPE,ED->IPD", states_IPD[:, :1], p["kernel"])
    of, (I, P, _) = tower(c), states_IPD.shape
    probe_11D = gather(p["probe"]).astype(states_IPD.dtype)[None]
    probe_I1D = reshard_to(
        jnp.broadcast_to(probe_11D, (I, 1, c.d_model)), partition_spec(states_IPD)
    )
    keys_values = layers.keys_values(p["attention"], states_IPD, of, None)
    q_I1, k_IP = jnp.zeros((I, 1), jnp.int32), jnp.zeros((I, P), jnp.int32)
    seen = Visibility(q_I1, k_IP, q_I1, k_IP, causal=False)
    x_I1D = layers.cross_attention(p["attention"], probe_I1D, of, keys_values, seen)
    return x_I1D + layers.mlp(p["mlp"], layers.norm(p["mlp_norm"], x_I1D, of), of)


@scope("encoder")
def project(p: Tree, states_IPD: jax.Array, c: ImageConfig) -> jax.Array:
    """Soft tokens [I, tokens, D] of the states of patches, without a class token."""
    x_IPE = merged(states_IPD, c)
    if c.projector == "pool":
        x_IPE = rms_norm(x_IPE, p["norm"]["scale"], _EPS, _OFFSET)
    return through(p, x_IPE)


def through(p: Tree, x_IPE: jax.Array) -> jax.Array:
    """The layers of `layers_specs`, [I, P, D]."""
    if "up" in p:
        hidden_IPD = add_bias(einsum("IPE,ED->IPD", x_IPE, p["up"]), p["up_bias"])
        hidden_IPD = jax.nn.gelu(hidden_IPD, approximate=False)
        return add_bias(einsum("IPE,ED->IPD", hidden_IPD, p["down"]), p["down_bias"])
    soft_IPD = einsum("IPE,ED->IPD", x_IPE, p["kernel"])
    return add_bias(soft_IPD, p["bias"]) if "bias" in p else soft_IPD


def merged(states_IPD: jax.Array, c: ImageConfig) -> jax.Array:
    """What a projector reads of each square of merge x merge patches, [I, P / merge^2, E]: their
    states side by side, row by row, or the mean of these."""
    if c.merge == 1:
        return states_IPD
    g = c.grid // c.merge
    # I (g m g' m') D to I g g' m m' D, as `vit.patches` cuts images.
    x = split_axis(split_axis(split_axis(states_IPD, 1, c.grid), 1, g), 3, g)
    x = merge_axes(jnp.swapaxes(x, 2, 3), 1)
    if c.projector == "shuffle":
        return merge_axes(merge_axes(x, 2), 2)
    return jnp.mean(x, axis=(2, 3), dtype=jnp.float32).astype(x.dtype)
