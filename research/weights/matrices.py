"""A weight's axes as those of a matrix: stacked axes, inputs, outputs."""

from collections.abc import Sequence
from typing import Any

STACKED = ("layers", "experts")  # logical axes that number matrices and are not part of one
ALL_LINEAR = "all-linear"
# Every matrix of the layers, by path.
# Also those of an encoder and of cross-attention; routers, norms and tables have other names.
LINEAR = (
    r"(.*/)?layers/(attention|cross|mlp(/shared)?)/"
    # The second line is of latent attention.
    r"(query|key|value|out|gate|up|down|"
    r"query_down|kv_down|key_up|value_up|rotary_key)"
)

Axes = list[tuple[int, str]]


def count_stacked(axes: Sequence[str]) -> int:
    """How many of a parameter's logical axes number layers and experts; these come first.

    >>> count_stacked(("layers", "embed", "heads", "head")), count_stacked(("vocab", "embed"))
    (1, 0)
    """
    return sum(axis in STACKED for axis in axes)


def split_axes(path: str, spec: Any) -> tuple[Axes, Axes, Axes]:
    """(stacked, inputs, outputs) of a weight's spec, each a list of (size, logical axis).
    ValueError, naming the path, for a parameter that is not a matrix, such as a bias."""
    axes = list(zip(spec.shape, spec.axes))
    stacked = count_stacked(spec.axes)
    stack, matrix = axes[:stacked], axes[stacked:]
    if len(matrix) < 2:
        raise ValueError(f"{path} is no matrix; leave it out of the rules")
    if spec.inputs < 0:  # a table, whose last axis is summed over
        return stack, matrix[-1:], matrix[:-1]
    return stack, matrix[: spec.inputs], matrix[spec.inputs :]
