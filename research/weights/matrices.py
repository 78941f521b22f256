"""A weight's spec as the matrix that it is: what is stacked, what is summed over, what comes
out."""

from typing import Any

STACKED = ("layers", "experts")  # axes of a spec that are no part of one matrix
ALL_LINEAR = "all-linear"
# every matrix of the layers, by path
LINEAR = r"(.*/)?layers/(attention|cross|mlp)/(query|key|value|out|gate|up|down)"

Axes = list[tuple[int, str]]


def parts(path: str, spec: Any) -> tuple[Axes, Axes, Axes]:
    """(size, logical axis) of the stacked axes, the inputs and the outputs. ValueError for what is
    no matrix."""
    axes = list(zip(spec.shape, spec.axes))
    stacked = sum(axis in STACKED for axis in spec.axes)
    stack, own = axes[:stacked], axes[stacked:]
    if len(own) < 2:
        raise ValueError(f"{path} is no matrix; leave it out of the rules")
    return (
        (stack, own[-1:], own[:-1])
        if spec.inputs < 0
        else (stack, own[: spec.inputs], own[spec.inputs :])
    )
