"""The layers that all families share. Each has two functions: its specs, and its computation.

Letters: B batch, T query time, S key time, D model, N query heads, K key heads, H head size, F
feed-forward.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from research.models.adapters import prefix_of, with_prefix
from research.models.config import ModelConfig
from research.models.context import LayerKind
from research.models.initial import Initial
from research.models.kv import KVCache
from research.models.spec import Init, Spec, constant, ones, zeros
from research.ops import attention as attention_op
from research.ops.attention import Bias, Visibility
from research.ops.einsum import add_bias, einsum
from research.ops.elementwise import apart
from research.ops.norm import layer_norm, rms_norm
from research.ops.rope import rotate
from research.scopes import scope
from research.tree import Tree

# "gelu" is the exact function (BERT), "gelu_tanh" the approximation that GPT-2 was trained with,
# "gelu_quick" that of CLIP.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def norm_specs(c: ModelConfig) -> Tree:
    """Scale [D], and for layer norm a bias [D] with `norm_bias`. The scale starts at 1 -
    `norm_offset`, so that a new norm scales by 1."""
    scale = {"scale": Spec((c.d_model,), ("vector",), _first_scale(c))}
    if c.norm == "rms" or not c.norm_bias:
        return scale
    return {**scale, "bias": Spec((c.d_model,), ("vector",), zeros)}


def _first_scale(c: ModelConfig) -> Init:
    """The value at which a new norm's scale starts, see `norm_specs`."""
    # offset + w is 1 for a new norm under either convention.
    return constant(1 - c.norm_offset) if c.norm_offset else ones


def norm(p: Tree, x_BTD: jax.Array, c: ModelConfig) -> jax.Array:
    """RMS norm or layer norm over D (`c.norm`), in the shape and dtype of `x`."""
    if c.norm == "rms":
        return rms_norm(x_BTD, p["scale"], c.norm_eps, c.norm_offset)
    return layer_norm(x_BTD, p["scale"], p.get("bias"), c.norm_eps)


def attention_specs(c: ModelConfig, start: Initial) -> Tree:
    """Query [D, N, H], key and value [D, K, H], out [N, H, D]; biases by `attention_bias`, and
    norms of queries and keys with `query_norm`, [H] each, or [N, H] and [K, H] over all heads;
    `sinks` [N] with `attention_sinks`."""
    D, N, K, H = c.d_model, c.heads, c.kv_heads, c.head_size
    specs = {
        "query": Spec((D, N, H), ("embed", "heads", "head"), start.query),
        "key": Spec((D, K, H), ("embed", "kv_heads", "head"), start.key),
        "value": Spec((D, K, H), ("embed", "kv_heads", "head"), start.value),
        "out": Spec((N, H, D), ("heads", "head", "embed"), start.out, inputs=2),
    }
    if c.attention_bias != "none":
        specs["query_bias"] = Spec((N, H), ("heads", "head"), zeros)
        if c.attention_bias != "no_key":
            specs["key_bias"] = Spec((K, H), ("kv_heads", "head"), zeros)
        specs["value_bias"] = Spec((K, H), ("kv_heads", "head"), zeros)
    # "qkv" (Qwen 2) has no bias on the output projection.
    if c.attention_bias in ("all", "no_key"):
        specs["out_bias"] = Spec((D,), ("vector",), zeros)
    if c.query_norm:
        for name, heads, axis in (("query", N, "heads"), ("key", K, "kv_heads")):
            one = Spec((H,), ("vector",), _first_scale(c))
            every = Spec((heads, H), (axis, "head"), _first_scale(c), kind="vector")
            specs[f"{name}_norm"] = one if c.query_norm_over == "head" else every
    if c.attention_sinks:
        specs["sinks"] = Spec((N,), ("heads",), zeros)
    return specs


@scope("projections")
def queries(p: Tree, x_BTD: jax.Array, c: ModelConfig, rotation: tuple | None) -> jax.Array:
    """Queries [B, T, N, H], normalised with `query_norm` and rotated unless `rotation` is None."""
    # Heads are an axis of the kernel, so no reshape stands between the product and the attention,
    # and a mesh axis can split heads.
    q_BTNH = einsum("BTD,DNH->BTNH", x_BTD, p["query"])
    if "query_bias" in p:
        q_BTNH = add_bias(q_BTNH, p["query_bias"])
    # Before the rotation, as in Qwen 3 and Gemma 3. A rotation keeps the length that the norm sets.
    if c.query_norm:
        q_BTNH = _head_norm(p["query_norm"], q_BTNH, c)
    return q_BTNH if rotation is None else rotate(q_BTNH, *rotation)


def _head_norm(scale: jax.Array, x_BTNH: jax.Array, c: ModelConfig) -> jax.Array:
    """Queries or keys [B, T, N, H] after their RMS norm, over H or, in OLMo 2, over N and H."""
    axes = 1 if c.query_norm_over == "head" else 2
    return rms_norm(x_BTNH, scale, c.norm_eps, c.norm_offset, axes=axes)


@scope("projections")
def keys_values(
    p: Tree, x_BSD: jax.Array, c: ModelConfig, rotation: tuple | None
) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, S, K, H]; keys are normalised and rotated like queries.

    A cache stores keys after this rotation, which depends on a token's own position alone.
    """
    # K <= N heads (grouped queries, arXiv:2305.13245): a cache holds N / K times less.
    k_BSKH = einsum("BSD,DKH->BSKH", x_BSD, p["key"])
    v_BSKH = einsum("BSD,DKH->BSKH", x_BSD, p["value"])
    if "key_bias" in p:
        k_BSKH = add_bias(k_BSKH, p["key_bias"])
    if "value_bias" in p:
        v_BSKH = add_bias(v_BSKH, p["value_bias"])
    if c.query_norm:
        k_BSKH = _head_norm(p["key_norm"], k_BSKH, c)
    return (k_BSKH if rotation is None else rotate(k_BSKH, *rotation)), v_BSKH


def attention(
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
    """(self-attention of `x`, [B, T, D]; the cache or None).

    With a cache, the keys and values of `x` are written to it as those of layer number `layer`, and
    queries attend to everything in it. `kind` says which keys a query sees.
    """
    q_BTNH = queries(p, x_BTD, c, kind.rotation)
    if kind.query_scale is not None:
        q_BTNH = q_BTNH * kind.query_scale.astype(q_BTNH.dtype)
    k_BTKH, v_BTKH = keys_values(p, x_BTD, c, kind.rotation)
    prefix = prefix_of(p, c)
    # The same arguments with and without a cache, so that decoding computes what training does.
    scoring = {
        "scale": score_scale(c),
        "softcap": c.attention_softcap,
        "bias": bias,
        "sinks_N": p.get("sinks"),
        "implementation": implementation,
    }
    if cache is None:
        k_BSKH, v_BSKH, visibility = with_prefix(prefix, k_BTKH, v_BTKH, kind.visibility)
        out_BTNH = attention_op.attend(q_BTNH, k_BSKH, v_BSKH, visibility, **scoring)
    else:
        out_BTNH, cache = cache.attend(
            layer, q_BTNH, k_BTKH, v_BTKH, kind.visibility, prefix=prefix, **scoring
        )
    return attention_output(p, out_BTNH), cache


def cross_attention(
    p: Tree,
    x_BTD: jax.Array,
    c: ModelConfig,
    memory_BSKH: tuple[jax.Array, jax.Array],
    visibility: Visibility,
    *,
    implementation: str = "auto",
) -> jax.Array:
    """Attention of `x` over an encoder's text, [B, T, D]. `memory_BSKH` are this layer's keys and
    values of it, computed once by `Model.encode`; of a single row where all rows read one text."""
    # No rotation: the two texts have positions of their own, which do not compare.
    q_BTNH, rows = queries(p, x_BTD, c, None), x_BTD.shape[0]
    one_text = memory_BSKH[0].shape[0] < rows
    if one_text:
        # As tokens of one row, so that beams read the text once and not each a copy of it.
        q_BTNH, visibility = _in_one_row(q_BTNH), _queries_in_one_row(visibility)
    out_BTNH = attention_op.attend(
        q_BTNH,
        *memory_BSKH,
        visibility,
        scale=score_scale(c),
        softcap=c.attention_softcap,
        sinks_N=p.get("sinks"),
        implementation=implementation,
    )
    out_BTNH = out_BTNH.reshape(*x_BTD.shape[:2], *out_BTNH.shape[2:]) if one_text else out_BTNH
    return attention_output(p, out_BTNH)


def _in_one_row(x: jax.Array) -> jax.Array:
    """[B, T, ...] as [1, B * T, ...]."""
    return x.reshape(1, -1, *x.shape[2:])


def _queries_in_one_row(visibility: Visibility) -> Visibility:
    """The visibility of queries in all rows as that of one row. Positions do not matter: a text is
    seen whole."""
    positions_1T, segments_1T = (
        _in_one_row(x) for x in (visibility.q_positions_BT, visibility.q_segments_BT)
    )
    return replace(visibility, q_positions_BT=positions_1T, q_segments_BT=segments_1T)


def score_scale(c: ModelConfig) -> float:
    """What the products of queries and keys are multiplied by."""
    # 1 / sqrt(H) keeps the variance of scores independent of H (arXiv:1706.03762, section 3.2.1).
    return (c.attention_scale or c.head_size**-0.5) * c.rope_scaling.score_multiplier


@scope("output")
def attention_output(p: Tree, out_BTNH: jax.Array) -> jax.Array:
    """What attention adds to the residual stream, [B, T, D], of what its heads give."""
    # Sums over heads and their elements: concatenation and projection in one product.
    y_BTD = einsum("BTNH,NHD->BTD", out_BTNH, p["out"])
    return add_bias(y_BTD, p["out_bias"]) if "out_bias" in p else y_BTD


def mlp_specs(c: ModelConfig, start: Initial) -> Tree:
    """Up [D, F], down [F, D] and, if gated, gate [D, F]; biases with `mlp_bias`."""
    D, F = c.d_model, c.d_ff
    specs = {
        "up": Spec((D, F), ("embed", "mlp"), start.up),
        "down": Spec((F, D), ("mlp", "embed"), start.down),
    }
    if c.gated:
        specs["gate"] = Spec((D, F), ("embed", "mlp"), start.up)
    if c.mlp_bias:
        specs["up_bias"] = Spec((F,), ("mlp",), zeros)
        if c.gated:
            specs["gate_bias"] = Spec((F,), ("mlp",), zeros)
        specs["down_bias"] = Spec((D,), ("vector",), zeros)
    return specs


def mlp(p: Tree, x_BTD: jax.Array, c: ModelConfig) -> jax.Array:
    """Feed-forward layer: activation(x up) down, or activation(x gate) * (x up) down."""
    # arXiv:2002.05202, equation 6: (f(x W) * (x V)) W2, with W the gate, V up and W2 down.
    up_BTF = einsum("BTD,DF->BTF", x_BTD, p["up"])
    if "up_bias" in p:
        up_BTF = add_bias(up_BTF, p["up_bias"])
    if c.gated:
        gate_BTF = einsum("BTD,DF->BTF", x_BTD, p["gate"])
        if "gate_bias" in p:
            gate_BTF = add_bias(gate_BTF, p["gate_bias"])
        # A loop of its own, see `apart`.
        hidden_BTF = apart(partial(gated, c), gate_BTF, up_BTF)
    else:
        hidden_BTF = apart(ACTIVATIONS[c.activation], up_BTF)
    y_BTD = einsum("BTF,FD->BTD", hidden_BTF, p["down"])
    return add_bias(y_BTD, p["down_bias"]) if "down_bias" in p else y_BTD


def gated(c: ModelConfig, gate: jax.Array, up: jax.Array) -> jax.Array:
    """What a gate lets through, elementwise: activation(gate) * up, and with the fields of gpt-oss
    min(gate, m) sigmoid(slope min(gate, m)) * (clip(up, -m, m) + offset), m the `gate_limit`."""
    if c.gate_limit:
        gate, up = jnp.minimum(gate, c.gate_limit), jnp.clip(up, -c.gate_limit, c.gate_limit)
    if c.gate_slope != 1.0:
        opened = gate * jax.nn.sigmoid(c.gate_slope * gate)
    else:
        opened = ACTIVATIONS[c.activation](gate)
    return opened * (up + c.up_offset if c.up_offset else up)


@scope("dropout")
def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """`x` with elements zeroed with probability `rate` and the others divided by 1 - rate
    (arXiv:1207.0580); `x` itself without a key."""
    if key is None or rate == 0.0:
        return x
    sharding = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding
    # The mask is drawn in the sharding of `x`, so that no device draws all of it.
    keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=sharding)
    # Scaled in training, so that evaluation needs no factor.
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
