"""The one contraction of activations with weights, and where its result lives.

Shardings are types (explicit mesh axes), so the sharding of a result follows from those of the operands: a kept letter
keeps its mesh axes, a contracted letter is summed over its own. Models therefore write equations and no shardings:

    x_BTD @(batch over data, fsdp)  *  w_DF @(D over fsdp, F over tensor)  ->  y_BTF @(batch over data, fsdp; F over tensor)

where the weight's fsdp axis exists for storage only and is gathered before the product (its gradient is scattered back).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.ops.backend import barrier, platform

# Mesh axes that split a weight in computation too. Any other axis of a weight is storage and is gathered for use.
COMPUTE_AXES = ("tensor", "expert")


def einsum(eqn: str, x: jax.Array, w: Any) -> jax.Array:
    """`eqn` of activations `x` and a weight `w`, in the dtype of `x`.

    `w` is an array, cast to the dtype of `x` and gathered, or a weight stand-in, which contracts itself.
    """
    if not isinstance(w, jax.Array):
        return w.einsum(eqn, x)
    return _product(eqn, x, gather(w.astype(x.dtype)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(eqn: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return contract(eqn, x, w)


def _product_forward(eqn: str, x: jax.Array, w: jax.Array):
    return contract(eqn, x, w), (x, w)


def _product_backward(eqn: str, saved: tuple[jax.Array, jax.Array], dy: jax.Array):
    """Both gradients in the layout of what they belong to.

    JAX's own rule contracts (dy, x) for the weight, which gives its transpose: the copy back, into which XLA's CPU
    backend fuses the activation's derivative, took a fifth of a training step.
    """
    x, w = saved
    (of_x, of_w), of_y = eqn.split("->")[0].split(","), eqn.split("->")[1]
    dx = contract(f"{of_y},{of_w}->{of_x}", dy, w)
    if platform() == "cpu" and x.dtype == jnp.float32 and dy.size < x.size:
        # The backend copies the left operand to transpose it. Let it be the smaller, and turn the yet smaller result;
        # in bfloat16 the copy is cheap, and this gains nothing.
        turned = "".join(sorted(of_w, key=lambda letter: letter not in of_y))
        dw = barrier(contract(f"{of_y},{of_x}->{turned}", dy, x))
        dw = jnp.transpose(dw, [turned.index(letter) for letter in of_w])
    else:
        dw = contract(f"{of_x},{of_y}->{of_w}", x, dy)
    return place_as(dx, placed(x)), place_as(dw, placed(w))


_product.defvjp(_product_forward, _product_backward)


def take(w: Any, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table `w` [V, D] at `ids` as [B, T, D] in `dtype`; ids must lie in [0, V)."""
    if not isinstance(w, jax.Array):
        return w.take(ids_BT).astype(dtype)
    table = gather(w.astype(dtype))
    if jax.sharding.get_abstract_mesh().empty:
        return table.at[ids_BT].get(mode="clip")
    return table.at[ids_BT].get(mode="clip", out_sharding=PartitionSpec(*spec(ids_BT), spec(table)[1]))


def grouped(x_MI: jax.Array, w: Any, sizes_E: jax.Array) -> jax.Array:
    """Rows [M, I] in groups of these sizes, each group times the matrix of its expert in `w` [E, I, O], as [M, O].

    What rows behind the last group become is unspecified. `w` is an array, cast to the dtype of `x`, or a stand-in.
    """
    if not isinstance(w, jax.Array):
        return w.grouped(x_MI, sizes_E)
    return lax.ragged_dot(x_MI, w.astype(x_MI.dtype), sizes_E)


def gather(w: jax.Array) -> jax.Array:
    """`w` with the mesh axes that only store it gathered (the all-gather of fully sharded data parallelism)."""
    if jax.sharding.get_abstract_mesh().empty:
        return w
    kept = tuple(_entry(tuple(name for name in _names(entry) if name in COMPUTE_AXES)) for entry in spec(w))
    return w if kept == spec(w) else jax.reshard(w, PartitionSpec(*kept))


def gathered(w: Any, dtype: jnp.dtype) -> Any:
    """A weight as the products of a `shard_map` want it: gathered like an array in `dtype`, or a stand-in whose parts are
    gathered and split alike."""
    return gather(w.astype(dtype)) if isinstance(w, jax.Array) else w.gathered()


def placed(x: jax.Array) -> PartitionSpec | None:
    """Where `x` lives, one entry a dimension; None without a mesh."""
    return None if jax.sharding.get_abstract_mesh().empty else PartitionSpec(*spec(x))


def place_as(x: jax.Array, place: PartitionSpec | None) -> jax.Array:
    """`x` moved to where `placed` said that something lives."""
    return x if place is None or spec(x) == tuple(place) else jax.reshard(x, place)


def whole(x: jax.Array, axis: int) -> jax.Array:
    """`x` gathered along one axis: every device holds all of it."""
    if jax.sharding.get_abstract_mesh().empty or spec(x)[axis] is None:
        return x
    return jax.reshard(x, PartitionSpec(*(None if i == axis else entry for i, entry in enumerate(spec(x)))))


def contract(eqn: str, *operands: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """`jnp.einsum` with the result's sharding derived from the operands'; `dtype` is the element type of the result.

    XLA's CPU backend has a bfloat16 product with a float32 result and none with a bfloat16 one, for which it widens both
    operands; there the result is narrowed afterwards.
    """
    out = None if jax.sharding.get_abstract_mesh().empty else result_spec(eqn, *operands)
    if dtype is None and jnp.result_type(*operands) == jnp.bfloat16 and platform() == "cpu":
        return jnp.einsum(eqn, *operands, preferred_element_type=jnp.float32, out_sharding=out).astype(jnp.bfloat16)
    return jnp.einsum(eqn, *operands, preferred_element_type=dtype, out_sharding=out)


def result_spec(eqn: str, *operands: jax.Array) -> PartitionSpec:
    """PartitionSpec of the result; ValueError where two of its letters would share a mesh axis."""
    inputs, result = eqn.split("->")
    where: dict[str, tuple[str, ...]] = {}
    for letters, operand in zip(inputs.split(","), operands):
        for letter, entry in zip(letters, spec(operand)):
            where[letter] = where.get(letter) or _names(entry)
    owner: dict[str, str] = {}
    for letter in result:
        for name in where[letter]:
            if name in owner:
                raise ValueError(f"einsum {eqn!r}: {owner[name]!r} and {letter!r} are both split over mesh axis {name!r}")
            owner[name] = letter
    return PartitionSpec(*(_entry(where[letter]) for letter in result))


def add_bias(x: jax.Array, bias: Any) -> jax.Array:
    """`x` [..., F] plus `bias` [F] (or [N, H] onto [..., N, H]), in the dtype of `x`.

    Added in float32, so that the gradient of the bias, a sum over all tokens, is a float32 sum.
    """
    row = jnp.expand_dims(bias.astype(jnp.float32), tuple(range(x.ndim - bias.ndim)))
    return (x.astype(jnp.float32) + row).astype(x.dtype)


def spec(x: jax.Array) -> tuple:
    """Entries of the array's PartitionSpec, one a dimension."""
    entries = tuple(jax.typeof(x).sharding.spec)
    return entries + (None,) * (x.ndim - len(entries))


def divide(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """`x` with an axis as two, of `parts` and of the rest; the first of them keeps the mesh axes."""
    shape = (*x.shape[:axis], parts, x.shape[axis] // parts, *x.shape[axis + 1 :])
    if jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    entries = spec(x)
    return jnp.reshape(x, shape, out_sharding=PartitionSpec(*entries[: axis + 1], None, *entries[axis + 1 :]))


def unite(x: jax.Array, axis: int) -> jax.Array:
    """`x` with an axis and the one behind it as one, which keeps the mesh axes of the first."""
    shape = (*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    if jax.sharding.get_abstract_mesh().empty:
        return x.reshape(shape)
    entries = spec(x)
    return jnp.reshape(x, shape, out_sharding=PartitionSpec(*entries[: axis + 1], *entries[axis + 2 :]))


def local_shape(x: jax.Array) -> tuple[int, ...]:
    """The shape of one device's part of `x`."""
    return x.shape if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding.shard_shape(x.shape)


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _entry(names: tuple[str, ...]) -> Any:
    return None if not names else names[0] if len(names) == 1 else names
