"""A narrower model: fewer feed-forward channels, groups of heads, or experts, by how much they are
used (Minitron, arXiv:2407.14679, section 2.2).

Everything that is cut goes out of every weight that has its axis, so the rest computes what it did:
a model whose cut parts were exactly zero has the same logits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.compress.calibration import Seen, by_layer
from research.models.config import ModelConfig
from research.models.model import Batch, Model
from research.weights.rules import is_leaf


@dataclass(frozen=True)
class Importance:
    """Means over tokens, float32 by layer: of |x| of each feed-forward channel [L, F], and of each
    group of query heads that share a key [L, K]."""

    channels_LF: np.ndarray
    groups_LK: np.ndarray


def importance(model: Model, params: tree.Tree, batches: Sequence[Batch]) -> Importance:
    """How much the parts of each layer are used on these texts. ValueError for a model of experts,
    of latent attention or of an encoder."""
    c, seen_by_layer = model.config, []
    check_cuttable(c)

    def _note(layer: dict[str, Any], seen: Seen) -> dict[str, Any]:
        seen_by_layer.append((seen["mlp/down"].mean_I, seen["attention/out"].mean_I))
        return layer

    by_layer(model, params, ["layers/mlp/down", "layers/attention/out"], batches, _note)
    channels_LF, inputs_LI = (np.stack(rows) for rows in zip(*seen_by_layer))
    return Importance(channels_LF, inputs_LI.reshape(c.layers, c.kv_heads, -1).mean(-1))


def best(scores_LX: np.ndarray, share: float) -> np.ndarray:
    """The numbers of the share of parts with the largest scores, in order, for each layer [L, Y];
    at least one, and rounded up to whole parts."""
    if not 0 < share <= 1:
        raise ValueError(f"width:{share} keeps that share; take one in (0, 1), such as 0.75")
    # The product may lie a rounding above a whole number.
    count = max(1, math.ceil(share * scores_LX.shape[1] - 1e-9))
    return np.sort(np.argsort(-scores_LX, axis=1, kind="stable")[:, :count], axis=1)


def cut(
    c: ModelConfig,
    params: tree.Tree,
    *,
    channels_LF: np.ndarray | None = None,
    groups_LK: np.ndarray | None = None,
    experts_LE: np.ndarray | None = None,
) -> tuple[ModelConfig, tree.Tree]:
    """(config, parameters) of the model with only these feed-forward channels, groups of heads and
    experts of each layer, by number; None keeps all. ValueError for parts that the model has not,
    and for more experts a token than are left."""
    check_cuttable(c, experts=experts_LE is None)
    kept: dict[str, np.ndarray] = {}
    fields: dict[str, int] = {}
    if channels_LF is not None:
        kept["mlp"], fields["d_ff"] = channels_LF, channels_LF.shape[1]
    if groups_LK is not None:
        of = c.heads // c.kv_heads
        heads_LN = groups_LK[:, :, None] * of + np.arange(of)
        kept["kv_heads"], kept["heads"] = groups_LK, heads_LN.reshape(len(heads_LN), -1)
        fields["kv_heads"], fields["heads"] = groups_LK.shape[1], of * groups_LK.shape[1]
    if experts_LE is not None:
        if c.experts_per_token > experts_LE.shape[1]:
            raise ValueError(
                f"{experts_LE.shape[1]} experts are left and a token goes to "
                f"{c.experts_per_token}; keep at least as many"
            )
        kept["experts"] = kept["routes"] = experts_LE
        fields["experts"] = experts_LE.shape[1]
    specs = tree.paths(Model(c).specs()["layers"])
    layers = {
        path: _taken(path, w, specs[path].axes, kept)
        for path, w in tree.paths(params["layers"], is_leaf).items()
    }
    return replace(c, **fields), {**params, "layers": tree.unflatten(layers)}


def check_cuttable(c: ModelConfig, experts: bool = True) -> None:
    """ValueError for a model whose parts are not cut here."""
    if c.kv_latent or (c.query_norm and c.query_norm_over == "heads"):
        raise ValueError(
            "the heads share latent keys or one norm over all of them, so none can be cut alone; "
            "take another recipe, such as depth:2"
        )
    if experts and c.experts:
        raise ValueError(
            f"the model's {c.experts} experts have channels of their own; take another recipe, "
            "such as depth:2"
        )


def _taken(path: str, w: Any, axes: Sequence[str], kept: Mapping[str, np.ndarray]) -> jax.Array:
    """A stacked weight with only the kept numbers of its axes, each layer with its own."""
    if not isinstance(w, jax.Array):
        raise ValueError(
            f"layers/{path} is a {type(w).__name__}; cut plain weights, then quantize, prune or "
            "adapt"
        )
    for axis, name in enumerate(axes):
        if name in kept and not (name == "mlp" and "shared" in path):
            # `axis` counts the layers, which `vmap` takes away.
            w = jax.vmap(partial(jnp.take, axis=axis - 1))(w, jnp.asarray(kept[name]))
    return w
