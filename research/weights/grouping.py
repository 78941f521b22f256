"""How the inputs of a weight are cut into groups that share a scale."""

import math
from typing import Any, NamedTuple

from jax.sharding import Mesh

from research.parallel.axes import AXES, COMPUTE, AxisRules, partition
from research.parallel.placement import mesh_axes
from research.weights.formats import Format
from research.weights.packing import packed_size

# A scale of 32 bits for 16 codes is 2 bits a code; smaller groups would cost more than they save.
_LEAST_GROUP = 16


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

    Without a `group`, inputs that the format's own number does not divide get the next smaller
    group that divides them, down to 16: finer groups are more exact and cost a little more storage.
    ValueError if groups do not divide the inputs, or if the codes of one do not fill whole bytes.
    """
    # Inputs of -1 mark a table [V, D], whose rows are its outputs and whose last axis is summed.
    begin = len(shape) - 1 if inputs < 0 else stacked
    end = len(shape) if inputs < 0 else begin + inputs
    total = math.prod(shape[begin:end])
    # 0 stands for one group of all inputs: one scale for each output.
    size = (format.group if group is None else group) or total
    if group is None:
        size = _fitting_group(total, size, format.bits)
    if total % size:
        remedy = "leave it unquantized, or take int8"
        if group is not None:
            remedy = "set config.quantize.group to a divisor of it"
        raise ValueError(f"groups of {size} do not divide {total} inputs; {remedy}")
    packed_size(size, format.bits)  # refuses groups that do not fill bytes
    return Grouping(tuple(shape[:begin]), tuple(shape[begin:end]), tuple(shape[end:]), size)


def _fitting_group(total: int, size: int, bits: int) -> int:
    """The largest group of at most `size` values that divides `total` and fills bytes; `size` if
    there is none of at least `_LEAST_GROUP`."""
    for smaller in range(size, min(size, _LEAST_GROUP) - 1, -1):
        # 8 codes fill bytes whatever their width, and some widths do with fewer.
        if total % smaller == 0 and smaller * bits % 8 == 0:
            return smaller
    return size


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
