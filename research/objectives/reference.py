"""The reference of preference losses: the model before the first step, whose log-probabilities the
policy's are compared with.

It is either held, as a frozen tree that runs beside the policy in every step, or its
log-probabilities are computed once before the first step, cached, and read with the windows: a step
then has neither its forward pass nor its parameters (`research.run.reference_scores`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.models.model import Model
from research.objectives.next_token import batch_scores
from research.objectives.objective import REFERENCE
from research.tree import Tree
from research.weights.rules import attach

HELD, CACHED = "held", "cached"


def refuse_kind(kind: str, loss: str, needed: bool) -> None:
    """ValueError for an unknown `kind` of reference, and for one that the loss does not use."""
    if kind not in (HELD, CACHED):
        raise ValueError(f"objective.reference={kind!r}; choose one of {HELD}, {CACHED}")
    if kind != HELD and not needed:
        raise ValueError(
            f"objective.reference={kind!r} is set and {loss} has no reference; leave it at {HELD!r}"
        )


def read_reference(window: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{"reference": float32 [T]}, log p of each target under the reference in nats, of a window of
    T + 1 tokens. ValueError for a window without."""
    if REFERENCE not in window:
        raise ValueError(
            "the windows lack the reference's log-probabilities, which a run adds to them at its "
            "start; set config.objective.reference='held'"
        )
    return {REFERENCE: window[REFERENCE][1:].astype(np.float32)}


def reference_scores(
    model: Model, held: Mapping[str, Tree], batch: dict[str, jax.Array], cached: bool
) -> jax.Array:
    """Log p of each target under the reference in nats, float32 [B, T], without a gradient."""
    if cached:
        # Padding may have anything, and is never counted.
        return jax.lax.stop_gradient(batch[REFERENCE].astype(jnp.float32))
    reference = attach(held["base"], jax.lax.stop_gradient(held[REFERENCE]))
    return jax.lax.stop_gradient(batch_scores(model, reference, batch)[0].logp)
