"""What reads a model's last states: the head for words, the pooled text and the classifier of
texts or tokens.

Letters: B batch, T time, D model, M output width of a square layer, V vocabulary or classes.
"""

import jax
import jax.numpy as jnp

from research.models import layers
from research.models.config import ModelConfig
from research.models.initial import Initial
from research.models.spec import Spec, zeros
from research.ops.einsum import add_bias, einsum
from research.parallel.placement import gather_axis
from research.scopes import scope
from research.tree import Tree


def head_specs(c: ModelConfig, start: Initial) -> Tree:
    """Parameters of the head: the table [V, D] unless tied, BERT's transform and norm with
    `mlm_head` or where they pool texts, and a bias of the logits. A decoder with labels has none of
    these."""
    specs: Tree = {}
    if c.scores_texts:
        return specs
    if not c.tied:
        specs["table"] = Spec((c.vocab_size, c.d_model), ("vocab", "embed"), start.head, inputs=-1)
    if c.mlm_head or c.head_pools:
        # BERT's transform is D x D; the table it multiplies with is that of the tokens.
        specs |= _layer_specs(c, start, bias=c.transform_bias)
        specs["norm"] = layers.norm_specs(c)
    # BERT's head has this bias beside its tied table.
    if c.mlm_head or c.head_bias:
        specs["output_bias"] = Spec((c.vocab_size,), ("vocab",), zeros)
    return specs


def class_specs(c: ModelConfig, start: Initial) -> Tree:
    """`pooler`, a layer [D, D], where the model has one of its own, and `classifier` [D, labels]
    with labels; that of a decoder has no bias, which differences of scores would not see."""
    specs: Tree = {}
    if c.pooler and not c.head_pools:
        specs["pooler"] = _layer_specs(c, start, bias=True)
    if c.labels:
        kernel = Spec((c.d_model, c.labels), ("embed", "label"), start.head)
        bias = {} if c.scores_texts else {"bias": Spec((c.labels,), ("label",), zeros)}
        specs["classifier"] = {"kernel": kernel, **bias}
    return specs


def _layer_specs(c: ModelConfig, start: Initial, *, bias: bool) -> Tree:
    kernel = {"kernel": Spec((c.d_model, c.d_model), ("embed", "vector"), start.head)}
    return kernel | ({"bias": Spec((c.d_model,), ("vector",), zeros)} if bias else {})


@scope("head")
def head_states(p_head: Tree, hidden_BTD: jax.Array, c: ModelConfig) -> jax.Array:
    """The states [B, T, D] that the head's table multiplies: the last states, with `mlm_head` after
    BERT's transform, times `head_scale`."""
    if c.mlm_head:
        hidden_BTD = _transform(p_head, hidden_BTD, c)
    if c.head_scale == 1.0:
        return hidden_BTD
    # On the states and not on the logits: they are fewer, and the table stays as it is stored.
    return hidden_BTD * jnp.asarray(c.head_scale, hidden_BTD.dtype)


def pooled(
    params: Tree, hidden_BTD: jax.Array, c: ModelConfig, segments_BT: jax.Array | None = None
) -> jax.Array:
    """One state a row, [B, 1, D]: that of the first token, or with pooling="mean" the mean over the
    tokens, through the pooler's layer; of a decoder the state of the last token as it is. A row is
    one text; its padding has segment 0, and None says that there is none."""
    if c.kind == "decoder":
        return _last(gather_axis(hidden_BTD, axis=1), segments_BT)
    if c.pooling == "first":
        # The axis T may be split over devices, and only one of them has the first token.
        one_B1D = gather_axis(hidden_BTD, axis=1)[:, :1]
    else:
        one_B1D = _mean(hidden_BTD, segments_BT)
    if c.head_pools:
        return _transform(params["head"], one_B1D, c)
    activation = layers.ACTIVATIONS.get(c.pooler_layer, jnp.tanh)
    return activation(_layer(params["pooler"], one_B1D))


def labelled(
    params: Tree, hidden_BTD: jax.Array, c: ModelConfig, segments_BT: jax.Array | None = None
) -> jax.Array:
    """The states that labels are read from: `pooled` ones, [B, 1, D], or those of every token,
    [B, T, D], after the transform of the masked-LM head where that pools."""
    if c.labels_over == "text":
        return pooled(params, hidden_BTD, c, segments_BT)
    return _transform(params["head"], hidden_BTD, c) if c.head_pools else hidden_BTD


def class_logits(params: Tree, states_BTD: jax.Array) -> jax.Array:
    """Logits float32 [B, T, V] of V classes, from what `labelled` returns; T is 1 of whole
    texts."""
    p = params["classifier"]
    logits_BTV = einsum("BTD,DV->BTV", states_BTD, p["kernel"])
    return (add_bias(logits_BTV, p["bias"]) if "bias" in p else logits_BTV).astype(jnp.float32)


def _layer(p: Tree, x_BTD: jax.Array) -> jax.Array:
    y_BTM = einsum("BTD,DM->BTM", x_BTD, p["kernel"])
    return add_bias(y_BTM, p["bias"]) if "bias" in p else y_BTM


def _transform(p_head: Tree, x_BTD: jax.Array, c: ModelConfig) -> jax.Array:
    """BERT's transform: a layer, the activation, a norm."""
    return layers.norm(p_head["norm"], layers.ACTIVATIONS[c.activation](_layer(p_head, x_BTD)), c)


def _last(hidden_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The state of each row's last token, [B, 1, D]; 0 where a row has none."""
    if segments_BT is None:
        return hidden_BTD[:, -1:]
    kept_BT = segments_BT > 0
    numbers_1T = jnp.arange(kept_BT.shape[1])[None]
    last_B1 = jnp.max(jnp.where(kept_BT, numbers_1T, -1), axis=1, keepdims=True)
    chosen_BT1 = (numbers_1T == last_B1)[:, :, None]
    # A sum over one token: a gather along T would not stay split over the batch.
    return jnp.sum(jnp.where(chosen_BT1, hidden_BTD, 0), axis=1, keepdims=True)


def _mean(hidden_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The mean state of each row's tokens [B, 1, D], summed in float32."""
    if segments_BT is None:
        return jnp.mean(hidden_BTD, axis=1, keepdims=True, dtype=jnp.float32).astype(
            hidden_BTD.dtype
        )
    counted_BT1 = (segments_BT > 0).astype(jnp.float32)[:, :, None]
    total_B1D = jnp.sum(hidden_BTD * counted_BT1, axis=1, keepdims=True)
    # A row that only fills up a batch has no tokens.
    count_B11 = jnp.maximum(jnp.sum(counted_BT1, axis=1, keepdims=True), 1)
    return (total_B1D / count_B11).astype(hidden_BTD.dtype)
