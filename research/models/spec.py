"""`Spec`, the declaration of a parameter: shape, logical axes, initialisation.

A model is declared as a tree of specs. Its parameters, their shardings, abstract shapes and sizes
are maps over that tree, so questions about a big model are answered without allocating it.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from research import tree
from research.parallel.axes import AxisRules, partition

# (key, shape, dtype, sharding) -> array. The sharding matters: without it each device would build
# the whole array.
Init = Callable[[jax.Array, tuple[int, ...], jnp.dtype, NamedSharding | None], jax.Array]


@dataclass(frozen=True)
class Spec:
    """One parameter.

    shape   its sizes
    axes    a logical axis name for each dimension (`research.parallel.axes`)
    init    draws its first value
    inputs  number of axes that a product contracts, counted after the stacked ones (layers,
            experts); -1 is the last axis, for tables that are also read by rows. Ignored for
            vectors
    dtype   element type if it is not the model's, as for integer codes
    kind    what the optimizer takes it for, a row of research/training/kinds.py; "" tells matrices
            and vectors apart by the axes
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Init
    inputs: int = 1
    dtype: str | None = None
    kind: str = ""


def normal(std: float) -> Init:
    """Gaussian with mean 0 and this standard deviation, drawn in float32 and then cast, so that
    parameters of another dtype are those of float32 rounded."""

    def _init(key, shape, dtype, sharding):
        # `out_sharding`: each device draws its own part of the same numbers.
        return (std * jax.random.normal(key, shape, jnp.float32, out_sharding=sharding)).astype(
            dtype
        )

    return _init


# Same signature as a drawn one: `initialize` calls all alike.
def zeros(key, shape, dtype, sharding):
    """All zeros."""
    return jnp.zeros(shape, dtype, out_sharding=sharding)


def ones(key, shape, dtype, sharding):
    """All ones."""
    return jnp.ones(shape, dtype, out_sharding=sharding)


def constant(value: float) -> Init:
    """All of one value."""

    def _init(key, shape, dtype, sharding):
        return jnp.full(shape, value, dtype, out_sharding=sharding)

    return _init


def stack(specs: tree.Tree, layers: int) -> tree.Tree:
    """The specs of `layers` equal layers as one tree with a leading layer axis."""
    return jax.tree.map(
        lambda s: replace(s, shape=(layers, *s.shape), axes=("layers", *s.axes)), specs
    )


def shardings(specs: tree.Tree, mesh: Mesh, rules: AxisRules) -> tree.Tree:
    """NamedSharding of every parameter."""
    return jax.tree.map(
        lambda s: NamedSharding(mesh, partition(s.axes, s.shape, mesh, rules)), specs
    )


def abstract(
    specs: tree.Tree,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
) -> tree.Tree:
    """Parameters as ShapeDtypeStructs, with shardings where a mesh and its rules are given."""
    if mesh is None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype or dtype), specs)
    # Integer codes and the like say their own dtype, whatever the model's is.
    places = shardings(specs, mesh, _required(rules))
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype or dtype, sharding=place),
        specs,
        places,
    )


def initialize(
    key: jax.Array,
    specs: tree.Tree,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
) -> tree.Tree:
    """Parameters, sharded where a mesh is given. Each is drawn with `key` folded with a hash of its
    path, so adding a parameter to a model changes no other one."""

    def _draw(path, s):
        name = tree.path_name(path)
        # CRC-32 and not `hash`, which Python salts anew in every process.
        place = None if mesh is None else shardings(s, mesh, _required(rules))
        return s.init(
            jax.random.fold_in(key, zlib.crc32(name.encode())), s.shape, s.dtype or dtype, place
        )

    # Called under jit for a big model, so that no device ever has an unsharded array.
    return jax.tree.map_with_path(_draw, specs)


def _required(rules: AxisRules | None) -> AxisRules:
    if rules is None:
        raise ValueError("a mesh was given without rules; pass `model.rules` beside it")
    return rules
