"""A model without the layers that change their input least (ShortGPT, arXiv:2403.03853)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.compress.calibration import walk
from research.models.config import ModelConfig
from research.models.kinds import layer_kind, layer_pattern, spell
from research.models.model import Batch, Model
from research.weights.rules import is_leaf


def block_influence(model: Model, params: tree.Tree, batches: Sequence[Batch]) -> np.ndarray:
    """1 - E[cos(x_l, x_l+1)] of each layer, float64 [L], over all tokens of `batches`: 0 for a
    layer that only scales its input (section 3.1, equation 1). ValueError for what is no decoder.
    """
    sums, tokens = np.zeros(model.config.layers), 0
    for index, _, before, after in walk(model, params, batches):
        for x_BTD, y_BTD in zip(before, after):
            sums[index] += float(_cosines(x_BTD, y_BTD))
            tokens += x_BTD.shape[0] * x_BTD.shape[1] * (index == 0)
    return 1 - sums / tokens


def least_influential(influence_L: np.ndarray, count: int) -> list[int]:
    """The numbers of `count` layers of the least influence, in order. ValueError for a count that
    leaves no layer."""
    if not 0 < count < len(influence_L):
        raise ValueError(
            f"depth:{count} of {len(influence_L)} layers leaves nothing or removes nothing; remove "
            f"1 to {len(influence_L) - 1}"
        )
    # Stable, so that of equal layers the first go, on every machine.
    return sorted(np.argsort(influence_L, kind="stable")[:count].tolist())


def drop_layers(
    c: ModelConfig, params: tree.Tree, dropped: Iterable[int]
) -> tuple[ModelConfig, tree.Tree]:
    """(config, parameters) of the model without the layers of these numbers. Those that stay keep
    their kinds, such as local and global attention.

    ValueError for a model whose first layers differ from the others in their parameters.
    """
    dropped = set(dropped)
    if c.dense_layers or (not c.first_norm and 0 in dropped):
        raise ValueError(
            f"the first {c.dense_layers or 1} layers are unlike the others and cannot be dropped; "
            "take another recipe, such as width:0.75"
        )
    kept = [index for index in range(c.layers) if index not in dropped]
    # Only of several kinds: else the fields that spell them stay as they are.
    kinds = {} if len(layer_pattern(c)) == 1 else spell([layer_kind(c, index) for index in kept])
    rows = np.asarray(kept)
    layers = jax.tree.map(lambda w: w[rows], params["layers"], is_leaf=_is_plain)
    return replace(c, layers=len(kept), **kinds), {**params, "layers": layers}


def _is_plain(node: object) -> bool:
    if is_leaf(node):
        raise ValueError(
            f"a layer has a {type(node).__name__}; drop layers of plain weights, then quantize, "
            "prune or adapt"
        )
    return False


@jax.jit
def _cosines(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    """The sum over tokens of the cosine between two states."""
    x, y = x_BTD.astype(jnp.float32), y_BTD.astype(jnp.float32)
    sizes_BT = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    # A state of zeros has no direction, so it counts as unchanged.
    cosines_BT = jnp.where(
        sizes_BT > 0, jnp.sum(x * y, -1) / jnp.where(sizes_BT > 0, sizes_BT, 1), 1
    )
    return jnp.sum(cosines_BT)
