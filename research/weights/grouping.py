"""How the inputs of a weight are cut into groups that share a scale."""

import math
from typing import Any, NamedTuple

from jax.sharding import Mesh

from research.parallel.axes import AXES, COMPUTE, AxisRules, partition
from research.parallel.placement import mesh_axes
from research.weights.formats import Format
from research.weights.packing import packed_size


class Grouping(NamedTuple):
    """Sizes of a weight's axes in front of its inputs, of the inputs, and behind them; and of a
    group."""

    front: tuple[int, ...]
    inputs: tuple[int, ...]
    behind: tuple[int, ...]
    group: int

    @property
    def axis(self) -> int:
        """The axis of the groups."""
        return len(self.front)

    def shape(self, inside: int) -> tuple[int, ...]:
        """The shape of an array with `inside` entries a group: [..., I / G, inside, ...]."""
        return (*self.front, math.prod(self.inputs) // self.group, inside, *self.behind)


def cut_inputs(
    shape: tuple[int, ...], format: Format, inputs: int, stacked: int, group: int | None
) -> Grouping:
    """The grouping of a weight of this shape; the arguments are those of
    `research.weights.quantized.quantize_array`.

    ValueError for groups that do not divide the inputs, or that do not fill bytes.
    """
    begin = len(shape) - 1 if inputs < 0 else stacked
    end = len(shape) if inputs < 0 else begin + inputs
    total = math.prod(shape[begin:end])
    size = (format.group if group is None else group) or total
    if total % size:
        raise ValueError(
            f"groups of {size} do not divide {total} inputs; set config.quantize.group to a "
            "divisor of it"
        )
    packed_size(size, format.bits)  # refuses groups that do not fill bytes
    return Grouping(tuple(shape[:begin]), tuple(shape[begin:end]), tuple(shape[end:]), size)


def check_split(leaf: Any, w: Any, mesh: Mesh, rules: AxisRules) -> None:
    """ValueError where a mesh axis of computation splits the inputs of a weight with spec `w` and
    cannot split the groups of its quantized form `leaf`, a `Quantized` of specs."""
    at, codes = leaf.group_axis, leaf.codes
    wanted, got = (mesh_axes(partition(one.axes, one.shape, mesh, rules)[at]) for one in (w, codes))
    for axis in wanted:
        if axis in got or AXES[axis] != COMPUTE:
            continue
        inputs = math.prod(leaf.inputs)
        raise ValueError(
            f"groups of {inputs // codes.shape[at]} do not divide the {inputs // mesh.shape[axis]} "
            f"inputs that each of {axis}:{mesh.shape[axis]} holds; set config.quantize.group to a "
            "divisor of them"
        )
