"""The ways to merge, as functions of one tensor: of its values in the base and in each model.

Every tensor, which is one parameter of one layer (and of one expert), is merged on its own, in
float32. A difference between a model and the base is called its task vector (arXiv:2212.04089).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from research.merging.settings import MergeSettings

# Beyond this cosine the angle is too small for SLERP's division, and the chord is the arc.
_PARALLEL = 0.9995


def linear(
    base: np.ndarray | None,
    models: Sequence[np.ndarray],
    s: MergeSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """The weighted mean of the models (arXiv:2203.05482); the base has no part in it."""
    return sum(w * x for w, x in zip(s.weights, models)) / np.float32(sum(s.weights))


def slerp(
    base: np.ndarray | None,
    models: Sequence[np.ndarray],
    s: MergeSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """The point on the arc from the first model to the second at the share `weights[0]` of its
    angle (Shoemake 1985), with the whole tensor as one vector; its length follows the same arc.

    Tensors that are almost parallel, of a cosine above 0.9995, are mixed on the chord.
    """
    first, second = models
    share = s.weights[0]
    # In float64: a sum of a hundred million products in float32 would lose the angle.
    lengths = [np.sqrt(np.sum(np.square(x, dtype=np.float64))) for x in models]
    product = np.sum(np.multiply(first, second, dtype=np.float64))
    cosine = product / (lengths[0] * lengths[1]) if all(lengths) else 0.0
    if abs(cosine) > _PARALLEL:
        parts = (1 - share, share)
    else:
        angle = np.arccos(cosine)
        parts = (np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle))
    return np.float32(parts[0]) * first + np.float32(parts[1]) * second


def task_arithmetic(
    base: np.ndarray, models: Sequence[np.ndarray], s: MergeSettings, rng: np.random.Generator
) -> np.ndarray:
    """base + scale * sum of weight * task vector (arXiv:2212.04089)."""
    return base + s.scale * sum(w * (x - base) for w, x in zip(s.weights, models))


def ties(
    base: np.ndarray, models: Sequence[np.ndarray], s: MergeSettings, rng: np.random.Generator
) -> np.ndarray:
    """Trim, elect a sign, and take the mean of those that agree (arXiv:2306.01708, algorithm 1).

    Of each task vector the share `density` with the largest absolute values is kept. The sign of a
    value is that of the weighted sum over models, + where that is 0.
    """
    return base + s.scale * _agreeing([trimmed(x - base, s.density) for x in models], s.weights)


def dare(
    base: np.ndarray, models: Sequence[np.ndarray], s: MergeSettings, rng: np.random.Generator
) -> np.ndarray:
    """`task_arithmetic` of task vectors of which a random share 1 - density of the values is
    dropped and the others are divided by `density`, so that the mean stays (arXiv:2311.03099)."""
    kept = [dropped(x - base, s.density, rng) for x in models]
    return base + s.scale * sum(w * x for w, x in zip(s.weights, kept))


def dare_ties(
    base: np.ndarray, models: Sequence[np.ndarray], s: MergeSettings, rng: np.random.Generator
) -> np.ndarray:
    """`dare`, with TIES's election of signs and mean in place of the sum (arXiv:2311.03099)."""
    kept = [dropped(x - base, s.density, rng) for x in models]
    return base + s.scale * _agreeing(kept, s.weights)


def trimmed(task: np.ndarray, density: float) -> np.ndarray:
    """The task vector with only its floor(density * size) largest absolute values, at least one; of
    equal ones those that come first."""
    keep = max(1, int(density * task.size))
    if keep >= task.size:
        return task
    order = np.argsort(-np.abs(task).reshape(-1), kind="stable")[:keep]
    kept = np.zeros(task.size, task.dtype)
    kept[order] = task.reshape(-1)[order]
    return kept.reshape(task.shape)


def dropped(task: np.ndarray, density: float, rng: np.random.Generator) -> np.ndarray:
    """The task vector with each value kept at the probability `density`, then divided by it."""
    kept = rng.random(task.shape, np.float32) < density
    return np.where(kept, task / np.float32(density), np.float32(0))


def _agreeing(tasks: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted mean over the values whose sign is the elected one; 0 where there is none."""
    weighted = [w * task for w, task in zip(weights, tasks)]
    elected = np.where(sum(weighted) >= 0, np.float32(1), np.float32(-1))
    agree = [np.sign(x) == elected for x in weighted]
    total = sum(np.where(a, x, np.float32(0)) for a, x in zip(agree, weighted))
    weight = sum(np.where(a, np.float32(w), np.float32(0)) for a, w in zip(agree, weights))
    return total / np.where(weight == 0, np.float32(1), weight)


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    `merge(base, models, settings, rng)`: the merged tensor. `tasks`: it adds task vectors to the
    base, which it needs, and `scale` multiplies what is added. `density`: the share of a task
    vector that is kept if nothing else is said, None where all is. `random`: what is kept is drawn.
    """

    merge: Callable[..., np.ndarray]
    tasks: bool = True
    density: float | None = None
    random: bool = False


# Densities are those of the papers' main results: the top 20% (TIES, section 4), and 90% dropped
# (DARE, section 4).
METHODS = {
    "linear": Method(linear, tasks=False),
    "slerp": Method(slerp, tasks=False),
    "task_arithmetic": Method(task_arithmetic),
    "ties": Method(ties, density=0.2),
    "dare": Method(dare, density=0.1, random=True),
    "dare_ties": Method(dare_ties, density=0.1, random=True),
}
