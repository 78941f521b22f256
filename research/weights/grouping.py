"""How the inputs of a weight are cut into groups that share a scale."""

import math
from typing import Any, NamedTuple

from jax.sharding import Mesh

from research.parallel.axes import AXES, COMPUTE, AxisRules, partition
from research.parallel.placement import mesh_axes
from research.weights.formats import Format
from research.weights.packing import packed_size


class Grouping(NamedTuple):
    """A weight's axis sizes, split at its inputs: `front` (stacked axes, and a table's rows),
    `inputs`, `behind` (outputs); `group` is the number of values that share a scale."""

    front: tuple[int, ...]
    inputs: tuple[int, ...]
    behind: tuple[int, ...]
    group: int

    @property
    def axis(self) -> int:
        """The axis that numbers groups in the quantized arrays."""
        return len(self.front)

    def shape(self, inside: int) -> tuple[int, ...]:
        """The shape of an array with `inside` entries for each group: [..., I / G, inside, ...]."""
        return (*self.front, math.prod(self.inputs) // self.group, inside, *self.behind)


def cut_inputs(
    shape: tuple[int, ...], format: Format, inputs: int, stacked: int, group: int | None
) -> Grouping:
    """The grouping of a weight of this shape; the arguments are those of
    `research.weights.quantized.quantize_array`.

    ValueError if groups do not divide the inputs, or if the codes of one do not fill whole bytes.
    """
    # Inputs of -1 mark a table [V, D], whose rows are its outputs and whose last axis is summed.
    begin = len(shape) - 1 if inputs < 0 else stacked
    end = len(shape) if inputs < 0 else begin + inputs
    total = math.prod(shape[begin:end])
    # 0 stands for one group of all inputs: one scale for each output.
    size = (format.group if group is None else group) or total
    if total % size:
        raise ValueError(
            f"groups of {size} do not divide {total} inputs; set config.quantize.group to a "
            "divisor of it"
        )
    packed_size(size, format.bits)  # refuses groups that do not fill bytes
    return Grouping(tuple(shape[:begin]), tuple(shape[begin:end]), tuple(shape[end:]), size)


def check_split(leaf: Any, w: Any, mesh: Mesh, rules: AxisRules) -> None:
    """ValueError if a compute axis of the mesh splits the inputs of the weight with spec `w`, but
    not the groups of its quantized form `leaf` (a `Quantized` of specs)."""
    at, codes = leaf.group_axis, leaf.codes
    # Mesh axes of the first input of the dense weight, and of the groups that replace it.
    wanted, got = (mesh_axes(partition(one.axes, one.shape, mesh, rules)[at]) for one in (w, codes))
    for axis in wanted:
        # Storage axes may stay unsplit: their parts are gathered before the product anyway.
        if axis in got or AXES[axis] != COMPUTE:
            continue
        inputs = math.prod(leaf.inputs)
        raise ValueError(
            f"groups of {inputs // codes.shape[at]} do not divide the {inputs // mesh.shape[axis]} "
            f"inputs that each of {axis}:{mesh.shape[axis]} holds; set config.quantize.group to a "
            "divisor of them"
        )
