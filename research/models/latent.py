"""Attention over latents (arXiv:2405.04434, section 2.1), as in DeepSeek-V2 and V3.

Keys and values of all heads are made of one latent a token, and of one rotated key that all heads
share. A cache keeps these two and nothing else: for DeepSeek-V3 576 numbers a token and layer,
where the keys and values of its 128 heads are 40,960. Over a cache the product that makes keys of
latents is moved to the queries, and that of values behind the attention (the paper's appendix C):
all heads then attend to the latents as to one key head. Without a cache, keys and values are made
for every head, whose products are 3.4 times smaller.

Letters: B batch, T query time, S key time, D model, N heads, H head size, r rotated elements of a
head and u its others (H = r + u), v elements of a head of values, Q and C the latents of queries
and of keys and values.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.models.adapters import check_heads
from research.models.config import ModelConfig
from research.models.context import LayerKind
from research.models.initial import Initial
from research.models.kv import KVCache
from research.models.layers import attention_output, queries, score_scale
from research.models.spec import Spec, ones, zeros
from research.ops import attention as attention_op
from research.ops.attention import Bias
from research.ops.einsum import add_bias, einsum
from research.ops.norm import rms_norm
from research.ops.rope import rotate
from research.parallel.placement import partition_spec, reshard_to
from research.scopes import scope
from research.tree import Tree
from research.weights.wrapper import dense, gathered

# Of the norms of latents, which do not follow `norm_eps`: DeepSeek's released code takes its
# class's default for them.
EPS = 1e-6


def value_size(c: ModelConfig) -> int:
    """Elements of a head of values."""
    return c.value_size or c.head_size


def cached_size(c: ModelConfig) -> int:
    """Numbers that a cache keeps for a token in one layer: the rotated key and the latent."""
    return c.rotary_size + c.kv_latent


def latent_specs(c: ModelConfig, start: Initial) -> Tree:
    """Of queries `query` [D, N, H], or with `query_latent` `query_down` [D, Q], its norm [Q] and
    `query` [Q, N, H]; `kv_down` [D, C], its norm [C] and of this latent `key_up` [C, N, u] and
    `value_up` [C, N, v]; `rotary_key` [D, r] and `out` [N, v, D]. With `attention_bias` biases of
    what makes latents and rotated keys, and of the output."""
    D, N, H, Q, C, r = (
        *(c.d_model, c.heads, c.head_size),
        *(c.query_latent, c.kv_latent, c.rotary_size),
    )
    specs, inner = {}, ("embed", D)
    if Q:
        specs |= _down_specs(c, start, "query_down", Q)
        inner = "latent", Q
    specs |= {
        "query": Spec((inner[1], N, H), (inner[0], "heads", "head"), start.query),
        **_down_specs(c, start, "kv_down", C),
        "key_up": Spec((C, N, H - r), ("latent", "heads", "head"), start.key),
        "value_up": Spec((C, N, value_size(c)), ("latent", "heads", "head"), start.value),
        "rotary_key": Spec((D, r), ("embed", "vector"), start.key),
        "out": Spec((N, value_size(c), D), ("heads", "head", "embed"), start.out, inputs=2),
    }
    if c.attention_bias == "all":
        specs["rotary_key_bias"] = Spec((r,), ("vector",), zeros)
        specs["out_bias"] = Spec((D,), ("vector",), zeros)
    return specs


def _down_specs(c: ModelConfig, start: Initial, name: str, size: int) -> Tree:
    """Specs of what makes a latent of so many elements, and of its norm."""
    specs = {
        # "vector" is never split, while what is made of latents splits the storage of that axis.
        name: Spec((c.d_model, size), ("embed", "vector"), start.key),
        f"{name}_norm": Spec((size,), ("vector",), ones),
    }
    if c.attention_bias == "all":
        specs[f"{name}_bias"] = Spec((size,), ("vector",), zeros)
    return specs


def latent_attention(
    p: Tree,
    x_BTD: jax.Array,
    c: ModelConfig,
    kind: LayerKind,
    *,
    bias: Bias = None,
    layer: jax.Array | int = 0,
    cache: KVCache | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, KVCache | None]:
    """(self-attention of `x`, [B, T, D]; the cache or None), as `research.models.layers.attention`
    gives them. The cache is one whose values are its keys, see `research.models.cache`."""
    if "prefix_key" in p:
        check_heads(c)
    inner = x_BTD
    if c.query_latent:
        with scope("projections"):
            inner = _normed(p, "query_down", x_BTD)
    q_BTNH = queries(p, inner, c, kind.rotation)
    if kind.query_scale is not None:
        q_BTNH = q_BTNH * kind.query_scale.astype(q_BTNH.dtype)
    with scope("projections"):
        latent_BSC = _normed(p, "kv_down", x_BTD)
        key_BS1r = _down(p, "rotary_key", x_BTD)[:, :, None]
        key_BS1r = key_BS1r if kind.rotation is None else rotate(key_BS1r, *kind.rotation)
    scoring = {
        "scale": score_scale(c),
        "softcap": c.attention_softcap,
        "bias": bias,
        "implementation": implementation,
    }
    if cache is None:
        k_BSNH, v_BSNv = _of_heads(p, latent_BSC, key_BS1r)
        size = max(c.head_size, value_size(c))
        q_BTNH, k_BSNH, v_BSNH = (_widened(x, size) for x in (q_BTNH, k_BSNH, v_BSNv))
        out_BTNH = attention_op.attend(q_BTNH, k_BSNH, v_BSNH, kind.visibility, **scoring)
        out_BTNv = out_BTNH[..., : value_size(c)]
    else:
        q_BTNX = _absorbed(p, q_BTNH, c)
        k_BT1X = jnp.concatenate([key_BS1r, latent_BSC[:, :, None]], axis=-1)
        out_BTNX, cache = cache.attend(layer, q_BTNX, k_BT1X, k_BT1X, kind.visibility, **scoring)
        with scope("projections"):
            out_BTNC = out_BTNX[..., c.rotary_size :]
            out_BTNv = einsum("BTNC,CNv->BTNv", out_BTNC, _array(p["value_up"]))
    return attention_output(p, out_BTNv), cache


def _down(p: Tree, name: str, x_BTD: jax.Array) -> jax.Array:
    """The states times a matrix [D, X] of a layer, with its bias if it has one, [B, T, X]."""
    y_BTX = einsum("BTD,DX->BTX", x_BTD, p[name])
    return add_bias(y_BTX, p[f"{name}_bias"]) if f"{name}_bias" in p else y_BTX


def _normed(p: Tree, name: str, x_BTD: jax.Array) -> jax.Array:
    """The normalised latents that a matrix of a layer makes of the states, [B, T, X]."""
    return rms_norm(_down(p, name, x_BTD), p[f"{name}_norm"], EPS)


@scope("projections")
def _of_heads(p: Tree, latent_BSC: jax.Array, key_BS1r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(keys [B, S, N, H], values [B, S, N, v]) of all heads."""
    k_BSNu = einsum("BSC,CNu->BSNu", latent_BSC, p["key_up"])
    v_BSNv = einsum("BSC,CNv->BSNv", latent_BSC, p["value_up"])
    # Every head has the same rotated elements, and a mesh may split the heads.
    shared_BSNr = jnp.broadcast_to(key_BS1r, (*k_BSNu.shape[:3], key_BS1r.shape[3]))
    shared_BSNr = reshard_to(shared_BSNr, partition_spec(k_BSNu))
    return jnp.concatenate([shared_BSNr, k_BSNu], axis=-1), v_BSNv


@scope("projections")
def _absorbed(p: Tree, q_BTNH: jax.Array, c: ModelConfig) -> jax.Array:
    """Queries [B, T, N, r + C] whose products with rotated keys and latents are those of the
    queries with keys: (k u) q = k (u q)."""
    q_BTNr, q_BTNu = q_BTNH[..., : c.rotary_size], q_BTNH[..., c.rotary_size :]
    q_BTNC = einsum("BTNu,CNu->BTNC", q_BTNu, _array(p["key_up"]))
    return jnp.concatenate([q_BTNr, q_BTNC], axis=-1)


def _array(w: Any) -> jax.Array:
    # A leaf multiplies by its weight's inputs; here products are with its outputs, or head by head.
    return w if isinstance(w, jax.Array) else dense(gathered(w))


def _widened(x_BSNH: jax.Array, size: int) -> jax.Array:
    """Heads with zeros behind them up to so many elements: kernels want keys and values of one
    size. Zeros of keys add nothing to a score, and those of values give elements that are cut
    off."""
    added = size - x_BSNH.shape[3]
    return jnp.pad(x_BSNH, ((0, 0), (0, 0), (0, 0), (0, added))) if added else x_BSNH
