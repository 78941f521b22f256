"""Mesh axes and their roles, and the logical axes of arrays that they split.

Parameters and activations name their dimensions logically ("embed", "heads", "batch"); rules map
those names to mesh axes. A mesh axis that does not divide a dimension leaves it whole (GPT-2's
50,257 words on tensor:2), and `unsplit` lists such cases so that a run can say so.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

AxisRules = Mapping[str, Sequence[str]]  # logical axis -> the mesh axes that split it

STORE = "store"  # splits rows of a batch; a weight is split for storage and gathered for use
SEQUENCE = "sequence"  # splits the tokens of a row; to a weight the same as STORE
COMPUTE = "compute"  # splits weights in computation too: each device multiplies its own part

STAGE = "stage"  # splits the layers of a stack; outside of it, rows of a batch

# The mesh axes, outermost first, and the role of each. A new axis is a row here and an entry of
# RULES for what it splits. For one of an existing role that is all.
AXES: Mapping[str, str] = {
    "data": STORE,
    "stage": STAGE,
    "fsdp": STORE,
    "expert": COMPUTE,
    "context": SEQUENCE,
    "tensor": COMPUTE,
}
MESH_AXES = tuple(AXES)
# Those that split a weight until it is used, for which its parts are gathered.
STORAGE_AXES = frozenset(name for name, role in AXES.items() if role in (STORE, SEQUENCE))

# What `config.axes` overrides and `Model.rules` carries. "embed" is the model width of a weight,
# "vector" the same width in a norm's scale or a bias, too small to be worth a collective, "latent"
# that of what queries, keys and values are made of in latent attention. A batch is spread over
# every axis that has no dimension of its own to split in a dense layer.
RULES: AxisRules = {
    "batch": ("data", "fsdp", "expert", "stage"),
    "length": ("context",),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "vector": (),
    "latent": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "routes": (),
    "layers": ("stage",),
    "position": (),
    "bucket": (),
    "label": (),
    "rank": (),
    "group": (),
    "virtual": (),
}


def merge_rules(overrides: AxisRules) -> dict[str, tuple[str, ...]]:
    """RULES with `overrides`; an unknown logical or mesh axis raises ValueError."""
    for logical, mesh_axes in overrides.items():
        if logical not in RULES:
            raise ValueError(f"unknown logical axis {logical!r}; choose from {', '.join(RULES)}")
        for name in mesh_axes:
            if name not in AXES:
                raise ValueError(
                    f"axes.{logical} names the mesh axis {name!r}; choose from {', '.join(AXES)}"
                )
    merged = {**RULES, **overrides}
    return {logical: tuple(names) for logical, names in merged.items()}


# What mesh axes of some roles cannot split: a scan takes each layer whole, a norm's scale or a bias
# meets states that are whole along it, and the largest of all routes are looked for at once. What
# is no stack and no row lies whole on every stage.
_WHOLE = {
    **{logical: (STAGE,) for logical in RULES if logical not in ("batch", "layers")},
    "layers": (STORE, SEQUENCE, COMPUTE),
    "vector": (STORE, SEQUENCE, COMPUTE, STAGE),
    "routes": (COMPUTE, STAGE),
}
# Axes of weights that products put beside, or sum away against, the axes of tokens.
_OF_PRODUCTS = ("embed", "latent", "vocab", "heads", "kv_heads", "head", "mlp")
_OF_TOKENS = ("batch", "length")


def check_rules(rules: AxisRules, mesh: Mesh | AbstractMesh) -> None:
    """ValueError for rules that no step can follow on this mesh, whatever the model."""
    split = {
        logical: {name for name in names if mesh.shape[name] > 1}
        for logical, names in rules.items()
    }
    for logical, roles in _WHOLE.items():
        for name in split[logical]:
            if AXES[name] in roles:
                raise ValueError(
                    f"axes.{logical} names the mesh axis {name!r}, which cannot split {logical!r}; "
                    f"set config.axes.{logical} to ()"
                )
    if shared := split["batch"] & split["length"]:
        raise ValueError(_both("batch", "length", shared, "split a batch"))
    for of_tokens in _OF_TOKENS:
        # A weight that such an axis only stores is gathered; one that it splits in computation
        # would need the axis on two dimensions of the product.
        computing = {name for name in split[of_tokens] if AXES[name] == COMPUTE}
        for of_weights in _OF_PRODUCTS:
            if shared := computing & split[of_weights]:
                raise ValueError(_both(of_tokens, of_weights, shared, "split a product"))


def _both(one: str, other: str, shared: set[str], what: str) -> str:
    return (
        f"axes.{one} and axes.{other} both {what} over the mesh axis {min(shared)!r}; "
        f"take it out of config.axes.{one} or config.axes.{other}"
    )


def partition(
    axes: Sequence[str], shape: Sequence[int], mesh: Mesh | AbstractMesh, rules: AxisRules
) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes.

    Mesh axes of size 1, and those that do not divide a dimension, are not named. Raises ValueError
    for an unknown logical axis and for two dimensions that map to one mesh axis of size over 1.
    """
    if len(axes) != len(shape):
        raise ValueError(
            f"axes {tuple(axes)} name {len(axes)} dimensions, "
            f"the shape {tuple(shape)} has {len(shape)}"
        )
    entries = []
    axis_of: dict[str, str] = {}
    for axis, size in zip(axes, shape):
        if axis not in rules:
            raise ValueError(f"unknown logical axis {axis!r}; choose from {', '.join(rules)}")
        # `parts` are the pieces so far: several mesh axes may split one dimension, one within
        # another.
        names, parts = [], 1
        for name in rules[axis]:
            # A dimension that does not divide stays whole on every device, which is right though
            # not fast.
            if mesh.shape[name] == 1 or size % (parts * mesh.shape[name]):
                continue
            if name in axis_of:
                raise ValueError(
                    f"axes {axis_of[name]!r} and {axis!r} of {tuple(axes)} are both split over "
                    f"mesh axis {name!r}; take it out of config.axes.{axis_of[name]} or "
                    f"config.axes.{axis}"
                )
            axis_of[name] = axis
            names.append(name)
            parts *= mesh.shape[name]
        entries.append(as_entry(tuple(names)))
    return PartitionSpec(*entries)


def as_entry(names: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """The entry of a PartitionSpec for these mesh axes: None, a name, or a tuple of names."""
    if not names:
        return None
    return names[0] if len(names) == 1 else names


def parts(logical: str, mesh: Mesh | AbstractMesh, rules: AxisRules) -> int:
    """Devices that a logical axis is split over, where its size is a multiple of them."""
    return math.prod(mesh.shape[name] for name in rules[logical])


def unsplit(
    axes: Sequence[str], shape: Sequence[int], mesh: Mesh | AbstractMesh, rules: AxisRules
) -> list[str]:
    """One "vocab 50257 over tensor:2" for each dimension left whole because a mesh axis does not
    divide it."""
    return [
        f"{axis} {size} over {name}:{mesh.shape[name]}"
        for axis, size in zip(axes, shape)
        for name in rules[axis]
        if size % mesh.shape[name]
    ]


def constrain(x: jax.Array, axes: Sequence[str], rules: AxisRules) -> jax.Array:
    """`x` moved to the sharding of these logical axes; `x` itself where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.reshard(x, partition(axes, x.shape, mesh, rules))
