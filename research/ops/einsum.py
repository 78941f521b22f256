"""The one contraction of activations with weights, and where its result lives.

Shardings are types (explicit mesh axes), so the sharding of a result follows from those of the
operands: a kept letter keeps its mesh axes, a contracted letter is summed over its own. Models
therefore write equations and no shardings:

    x_BTD @(batch over data, fsdp)  *  w_DF @(D over fsdp, F over tensor)  ->  y_BTF @(batch over data, fsdp; F over tensor)

where the weight's fsdp axis exists for storage only and is gathered before the product (its
gradient is scattered back).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.devices.backend import barrier, platform
from research.ops.equation import parse
from research.ops.kernels import grouped_matmul
from research.parallel.collectives import sum_to_place
from research.parallel.placement import (
    as_entry,
    computing,
    gather,
    join_parts,
    mesh_axes,
    place_as,
    placed,
    result_spec,
    spec,
    storing,
    unplaced,
    whole,
)


def einsum(eqn: str, x: jax.Array, w: Any) -> jax.Array:
    """`eqn` of activations `x` and a weight `w`, in the dtype of `x`.

    `w` is an array, cast to the dtype of `x` and gathered, or a weight stand-in, which contracts
    itself.
    """
    if not isinstance(w, jax.Array):
        return w.einsum(eqn, x)
    return _product(eqn, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(eqn: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return contract(eqn, x, gather(w.astype(x.dtype)))


def _product_forward(eqn: str, x: jax.Array, w: jax.Array):
    # What is kept is the weight as it is stored; it is gathered again for the backward pass.
    return contract(eqn, x, gather(w.astype(x.dtype))), (x, w)


def _product_backward(eqn: str, saved: tuple[jax.Array, jax.Array], dy: jax.Array):
    """Both gradients in the type of what they belong to and where that lives."""
    x, w = saved
    of_x, of_w, of_y = parse(eqn)
    dx = contract(f"{of_y},{of_w}->{of_x}", dy, gather(w.astype(x.dtype)))
    return place_as(dx, placed(x)), _weight_gradient(of_x, of_y, of_w, x, dy, w)


_product.defvjp(_product_forward, _product_backward)


def _weight_gradient(
    of_x: str, of_y: str, of_w: str, x: jax.Array, dy: jax.Array, w: jax.Array
) -> jax.Array:
    """`x` and `dy` contracted over all letters that the weight has not, in the weight's layout,
    type and place.

    Each device contracts its own tokens; the sum over the others' is scattered to where the
    gradient is stored.
    """
    place = placed(w)
    if place is None or not any((*spec(x), *spec(dy), *place)):  # one device
        return _outer(of_x, of_y, of_w, x, dy, w.dtype)
    where = {letter: mesh_axes(entry) for letter, entry in zip(of_x, spec(x))}
    where |= {
        letter: where.get(letter) or mesh_axes(entry) for letter, entry in zip(of_y, spec(dy))
    }
    summed = {name for letter, names in where.items() if letter not in of_w for name in names}
    stored = [
        tuple(n for n in mesh_axes(entry) if n not in where[letter])
        for letter, entry in zip(of_w, place)
    ]

    def local(x, dy):
        return sum_to_place(_outer(of_x, of_y, of_w, x, dy, w.dtype), stored, summed)

    dy = place_as(dy, PartitionSpec(*(as_entry(where[letter]) for letter in of_y)))
    split = PartitionSpec(
        *(as_entry((*where[letter], *names)) for letter, names in zip(of_w, stored))
    )
    dw = jax.shard_map(local, in_specs=(placed(x), placed(dy)), out_specs=split, check_vma=False)(
        x, dy
    )
    return place_as(dw, place)


def _outer(
    of_x: str, of_y: str, of_w: str, x: jax.Array, dy: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """`x` and `dy` contracted to the weight's letters, in that order.

    JAX's own rule contracts (dy, x), which gives the transpose: the copy back, into which XLA's CPU
    backend fuses the activation's derivative, took a fifth of a training step.
    """
    if platform() == "cpu" and x.dtype == jnp.float32 and dy.size < x.size:
        # The backend copies the left operand to transpose it. Let it be the smaller, and turn the
        # yet smaller result; in bfloat16 the copy is cheap, and this gains nothing.
        turned = "".join(sorted(of_w, key=lambda letter: letter not in of_y))
        dw = barrier(contract(f"{of_y},{of_x}->{turned}", dy, x))
        return jnp.transpose(dw, [turned.index(letter) for letter in of_w])
    return contract(f"{of_x},{of_y}->{of_w}", x, dy, dtype=dtype)


def take(w: Any, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table `w` [V, D] at `ids` as [B, T, D] in `dtype`; ids must lie in [0, V)."""
    if not isinstance(w, jax.Array):
        return w.take(ids_BT).astype(dtype)
    return _rows(w, ids_BT, jnp.dtype(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(table_VD: jax.Array, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    table_VD = gather(table_VD.astype(dtype))
    if jax.sharding.get_abstract_mesh().empty:
        return table_VD.at[ids_BT].get(mode="clip")
    return table_VD.at[ids_BT].get(
        mode="clip", out_sharding=PartitionSpec(*spec(ids_BT), spec(table_VD)[1])
    )


def _rows_forward(table_VD: jax.Array, ids_BT: jax.Array, dtype: jnp.dtype):
    return _rows(table_VD, ids_BT, dtype), (table_VD, ids_BT)


def _rows_backward(dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], dy_BTD: jax.Array):
    """Rows summed in float32: in bfloat16 the sum of a frequent token stops growing at a few
    hundred terms."""
    table_VD, ids_BT = saved
    place, rows = placed(table_VD), table_VD.shape[0]

    def added(ids_BT, dy_BTD, rows):
        sums_VD = jnp.zeros((rows, dy_BTD.shape[-1]), jnp.float32)
        owned = jnp.where(
            ids_BT < 0, rows, ids_BT
        )  # what is of other devices falls out of the table
        return sums_VD.at[owned].add(dy_BTD.astype(jnp.float32), mode="drop").astype(table_VD.dtype)

    if place is None:
        return added(ids_BT, dy_BTD, rows), None
    owners = computing(place[0])
    stored = storing(place)
    summed = {name for entry in spec(dy_BTD)[:2] for name in mesh_axes(entry)}

    def local(ids_BT, dy_BTD):
        own = rows // math.prod(lax.axis_size(name) for name in owners)
        first = lax.axis_index(owners) * own if owners else 0
        return sum_to_place(added(ids_BT - first, dy_BTD, own), stored, summed)

    dy_BTD = whole(dy_BTD, axis=2)
    ids_BT = place_as(ids_BT, PartitionSpec(*spec(dy_BTD)[:2]))
    split = PartitionSpec(as_entry((*owners, *stored[0])), as_entry(stored[1]))
    dtable = jax.shard_map(
        local, in_specs=(placed(ids_BT), placed(dy_BTD)), out_specs=split, check_vma=False
    )(ids_BT, dy_BTD)
    return place_as(dtable, place), None


_rows.defvjp(_rows_forward, _rows_backward)


def grouped(
    x_MI: jax.Array, w: Any, sizes_E: jax.Array, stored: Sequence[tuple[str, ...]] = ()
) -> jax.Array:
    """Rows [M, I] in groups of these sizes, each group times the matrix of its expert in `w` [E, I,
    O], as [M, O].

    What rows behind the last group become is unspecified; their gradient is 0. `w` is a stand-in,
    or an array, cast to the dtype of `x`, of which the mesh axes `stored` hold parts of each
    dimension: inside `shard_map` it is gathered over them.
    """
    if not isinstance(w, jax.Array):
        return w.grouped(x_MI, sizes_E)
    return _groups(tuple(stored), x_MI, w, sizes_E)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _groups(
    stored: Sequence[tuple[str, ...]], x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array
) -> jax.Array:
    return grouped_matmul.rows(x_MI, join_parts(w_EIO.astype(x_MI.dtype), stored), sizes_E)


def _groups_forward(
    stored: Sequence[tuple[str, ...]], x_MI: jax.Array, w_EIO: jax.Array, sizes_E: jax.Array
):
    return _groups(stored, x_MI, w_EIO, sizes_E), (x_MI, w_EIO, sizes_E)


def _groups_backward(
    stored: Sequence[tuple[str, ...]], saved: tuple[jax.Array, ...], dy_MO: jax.Array
):
    """Both gradients in the type of what they belong to; the matrices' is scattered as they are
    stored, in one go."""
    x_MI, w_EIO, sizes_E = saved
    dx_MI = grouped_matmul.rows(
        dy_MO, join_parts(w_EIO.astype(x_MI.dtype), stored), sizes_E, transposed=True
    )
    dw_EIO = grouped_matmul.matrices(x_MI, dy_MO, sizes_E, w_EIO.dtype)
    summed = {name for names in stored for name in names}
    if stored and not stored[0] and dw_EIO.shape[0] == 1:
        # As a matrix: of a scatter behind an axis of 1 TPU's compiler makes an all-reduce, which
        # moves twice the bytes.
        dw_EIO = sum_to_place(dw_EIO[0], stored[1:], summed)[None]
    else:
        dw_EIO = sum_to_place(dw_EIO, stored, summed)
    return grouped_matmul.of_groups(dx_MI, sizes_E), dw_EIO, None


_groups.defvjp(_groups_forward, _groups_backward)


def gathered(w: Any, dtype: jnp.dtype) -> Any:
    """A weight as the products of a `shard_map` want it: gathered like an array in `dtype`, or a
    stand-in whose parts are gathered and split alike."""
    return gather(w.astype(dtype)) if isinstance(w, jax.Array) else w.gathered()


def contract(eqn: str, *operands: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """`jnp.einsum` with the result's sharding derived from the operands'; `dtype` is the element
    type of the result.

    XLA's CPU backend has a bfloat16 product with a float32 result and none with a bfloat16 one, for
    which it widens both operands; there the result is narrowed afterwards.
    """
    out = None if unplaced() else result_spec(eqn, *operands)
    if (dtype or jnp.result_type(*operands)) == jnp.bfloat16 and platform() == "cpu":
        return jnp.einsum(
            eqn, *operands, preferred_element_type=jnp.float32, out_sharding=out
        ).astype(jnp.bfloat16)
    return jnp.einsum(eqn, *operands, preferred_element_type=dtype, out_sharding=out)


def add_bias(x: jax.Array, bias: Any) -> jax.Array:
    """`x` [..., F] plus `bias` [F] (or [N, H] onto [..., N, H]), in the dtype of `x`.

    Added in float32, so that the gradient of the bias, a sum over all tokens, is a float32 sum.
    """
    row = jnp.expand_dims(bias.astype(jnp.float32), tuple(range(x.ndim - bias.ndim)))
    return (x.astype(jnp.float32) + row).astype(x.dtype)
