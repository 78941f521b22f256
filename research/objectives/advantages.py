"""Advantages: how much better a sampled text is than the others, or than was expected, from their
rewards.

Letters: P prompts, G texts of a prompt. A reward of NaN is none: the text is in no mean, and its
advantage is 0.
"""

from collections.abc import Callable

import numpy as np

# Keeps a group whose rewards hardly differ from getting large advantages (TRL's constant).
_SMALL = 1e-4


def centred(rewards_PG: np.ndarray) -> np.ndarray:
    """Rewards less the mean of their prompt (arXiv:2503.20783, equation 5)."""
    count_P1 = np.sum(~np.isnan(rewards_PG), axis=1, keepdims=True)
    mean_P1 = np.nansum(rewards_PG, axis=1, keepdims=True) / np.maximum(count_P1, 1)
    # One text is its own mean, and says nothing about being better than others.
    return np.where(np.isnan(rewards_PG) | (count_P1 < 2), 0.0, rewards_PG - mean_P1)


def group(rewards_PG: np.ndarray) -> np.ndarray:
    """`centred`, over the standard deviation of the prompt's rewards (arXiv:2402.03300, section
    4.1.2)."""
    return centred(rewards_PG) / (_deviation(rewards_PG, axis=1) + _SMALL)


def batch(rewards_PG: np.ndarray) -> np.ndarray:
    """`centred`, over the standard deviation of all rewards (arXiv:2510.13786, section 3.2)."""
    return centred(rewards_PG) / (_deviation(rewards_PG, axis=None) + _SMALL)


def leave_one_out(rewards_PG: np.ndarray) -> np.ndarray:
    """Rewards less the mean of the prompt's other texts (arXiv:2402.14740, section 3.3)."""
    count_P1 = np.sum(~np.isnan(rewards_PG), axis=1, keepdims=True)
    # r - (S - r) / (n - 1) = (r - S / n) n / (n - 1)
    return centred(rewards_PG) * count_P1 / np.maximum(count_P1 - 1, 1)


def gae(rewards_PG: np.ndarray) -> np.ndarray:
    """The rewards themselves: the loss takes what a value head expected from them, see
    `research.objectives.gae`."""
    return np.where(np.isnan(rewards_PG), 0.0, rewards_PG)


# By the value of config.objective.advantage.
ADVANTAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "group": group,
    "batch": batch,
    "centred": centred,
    "leave_one_out": leave_one_out,
    "gae": gae,
}


def compares(name: str) -> bool:
    """Whether the advantage of this name, or "" for none, compares the texts of a prompt."""
    return name not in ("", "gae")


def constant(rewards_PG: np.ndarray) -> np.ndarray:
    """Bool [P], true for prompts whose texts all have one reward, or fewer than two a reward: they
    teach nothing."""
    low_P = np.nanmin(np.where(np.isnan(rewards_PG), np.inf, rewards_PG), axis=1)
    high_P = np.nanmax(np.where(np.isnan(rewards_PG), -np.inf, rewards_PG), axis=1)
    return high_P <= low_P


def _deviation(rewards_PG: np.ndarray, axis: int | None) -> np.ndarray:
    """The standard deviation of the rewards that are there, of a sample (n - 1); 0 for one."""
    count = np.sum(~np.isnan(rewards_PG), axis=axis, keepdims=True)
    mean = np.nansum(rewards_PG, axis=axis, keepdims=True) / np.maximum(count, 1)
    squares = np.nansum((rewards_PG - mean) ** 2, axis=axis, keepdims=True)
    return np.sqrt(squares / np.maximum(count - 1, 1))
