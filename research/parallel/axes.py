"""Logical axes of arrays and the mesh axes that shard them.

Parameters and activations name their dimensions logically ("embed", "heads", "batch"); one table
maps those names to mesh axes. A dimension that a mesh axis does not divide stays whole on that axis
(GPT-2's 50,257 words on tensor:2), and `unsplit` lists such cases so that a run can say so.
"""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")

# "embed" is the model width of a weight, which fsdp splits for storage and gathers for use;
# "vector" is the same width in a norm's scale or a bias, too small to be worth a collective.
# Batches are spread over every axis that has no dimension of its own to split in a dense layer.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "length": ("context",),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "vector": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "routes": (),
    "layers": (),
    "position": (),
    "bucket": (),
    "label": (),
    "rank": (),
    "group": (),
    "virtual": (),
}


def merge_rules(overrides: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """RULES with `overrides`; an unknown logical or mesh axis raises ValueError."""
    for logical, mesh_axes in overrides.items():
        if logical not in RULES:
            raise ValueError(f"unknown logical axis {logical!r}; choose from {', '.join(RULES)}")
        for name in mesh_axes:
            if name not in MESH_AXES:
                raise ValueError(
                    f"axes.{logical} names the mesh axis {name!r}; choose from {', '.join(MESH_AXES)}"
                )
    return {**RULES, **{logical: tuple(names) for logical, names in overrides.items()}}


def partition(
    axes: Sequence[str],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Mapping[str, Sequence[str]] = RULES,
) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes; mesh axes of size 1 split nothing and
    are not named.

    Raises ValueError for an unknown logical axis and for two dimensions that map to one mesh axis
    of size over 1.
    """
    if len(axes) != len(shape):
        raise ValueError(
            f"axes {tuple(axes)} name {len(axes)} dimensions, the shape {tuple(shape)} has {len(shape)}"
        )
    entries, used = [], {}
    for axis, size in zip(axes, shape):
        if axis not in rules:
            raise ValueError(f"unknown logical axis {axis!r}; choose from {', '.join(rules)}")
        names, parts = [], 1
        for name in rules[axis]:
            if mesh.shape[name] == 1 or size % (parts * mesh.shape[name]):
                continue
            if name in used:
                raise ValueError(
                    f"axes {used[name]!r} and {axis!r} of {tuple(axes)} are both split over mesh axis {name!r}"
                )
            used[name] = axis
            names.append(name)
            parts *= mesh.shape[name]
        entries.append(tuple(names) if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*entries)


def unsplit(
    axes: Sequence[str],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Mapping[str, Sequence[str]] = RULES,
) -> list[str]:
    """One "vocab 50257 over tensor:2" for each dimension left whole because a mesh axis does not
    divide it."""
    return [
        f"{axis} {size} over {name}:{mesh.shape[name]}"
        for axis, size in zip(axes, shape)
        for name in rules[axis]
        if size % mesh.shape[name]
    ]


def constrain(
    x: jax.Array, axes: Sequence[str], rules: Mapping[str, Sequence[str]] = RULES
) -> jax.Array:
    """`x` moved to the sharding of these logical axes; `x` itself where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.reshard(x, partition(axes, x.shape, mesh, rules))
