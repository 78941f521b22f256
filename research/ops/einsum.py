"""The one contraction of activations with weights, and the sharding of its result.

Shardings are types (explicit mesh axes), so the sharding of a result follows from those of the
operands: a kept letter keeps its mesh axes, a contracted letter is summed over its own. Models
therefore write equations and no shardings:

    x_BTD  batch over data and fsdp
    w_DF   D over fsdp, F over tensor
    y_BTF  batch over data and fsdp, F over tensor

where fsdp only stores the weight: it is gathered before the product, and the gradient is scattered
back.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.devices.backend import barrier, platform
from research.ops.kernels.equation import Equation, parse
from research.parallel.collectives import sum_to_place
from research.parallel.placement import (
    as_entry,
    compute_axes,
    gather,
    gather_axis,
    mesh_axes,
    partition_spec,
    reshard_to,
    result_spec,
    spec_entries,
    storage_axes,
    unsharded,
)


def einsum(eqn: str, x: jax.Array, w: Any) -> jax.Array:
    """`eqn` of activations `x` and a weight `w`, in the dtype of `x`.

    `w` is an array, cast to the dtype of `x` and gathered, or a leaf
    (`research.weights.leaf.Leaf`), which contracts itself.

        einsum("BTD,DNH->BTNH", x_BTD, query_DNH)
    """
    if not isinstance(w, jax.Array):
        return w.einsum(eqn, x)
    return _product(eqn, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(eqn: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return contract(eqn, x, gather(w.astype(x.dtype)))


def _product_forward(eqn: str, x: jax.Array, w: jax.Array):
    # The stored shard is kept; the gathered weight would cost the memory that sharding saves.
    return contract(eqn, x, gather(w.astype(x.dtype))), (x, w)


def _product_backward(eqn: str, saved: tuple[jax.Array, jax.Array], dy: jax.Array):
    """The gradients by `x` and `w`, in their types and shardings."""
    x, w = saved
    dx = contract(parse(eqn).to_x, dy, gather(w.astype(x.dtype)))
    return reshard_to(dx, partition_spec(x)), _weight_gradient(parse(eqn), x, dy, w)


_product.defvjp(_product_forward, _product_backward)


@dataclass(frozen=True)
class _Layout:
    """The sharding of a weight's gradient and its operands, as mesh axes by letter.

    computed   for each letter of `x` and `y`, the mesh axes that split it in computation
    stored     for each letter of `w`, in order, the mesh axes that only split its storage

    In the module's example: B (data, fsdp), F (tensor,) in `computed`, `stored` [(fsdp,), ()].
    """

    computed: dict[str, tuple[str, ...]]
    stored: list[tuple[str, ...]]

    @classmethod
    def of(cls, eqn: Equation, x: jax.Array, dy: jax.Array, w: jax.Array) -> "_Layout":
        """The layout for these arrays; where `x` and `dy` split a letter differently, as in `x`."""
        computed = {letter: mesh_axes(entry) for letter, entry in zip(eqn.x, spec_entries(x))}
        for letter, entry in zip(eqn.y, spec_entries(dy)):
            computed[letter] = computed.get(letter) or mesh_axes(entry)
        stored = []
        for letter, entry in zip(eqn.w, spec_entries(w)):
            stored.append(tuple(axis for axis in mesh_axes(entry) if axis not in computed[letter]))
        return cls(computed, stored)

    def place(self, letters: str) -> PartitionSpec:
        """The sharding in computation of an array with these letters."""
        return PartitionSpec(*(as_entry(self.computed[letter]) for letter in letters))

    def scattered(self, letters: str) -> PartitionSpec:
        """The sharding of the weight's gradient after the scatter over storage axes."""
        axes = ((*self.computed[letter], *storing) for letter, storing in zip(letters, self.stored))
        return PartitionSpec(*map(as_entry, axes))

    def summed(self, kept: str) -> set[str]:
        """The mesh axes of all letters but those `kept`: the gradient is summed over them."""
        contracted = (axes for letter, axes in self.computed.items() if letter not in kept)
        return {axis for axes in contracted for axis in axes}


def _weight_gradient(eqn: Equation, x: jax.Array, dy: jax.Array, w: jax.Array) -> jax.Array:
    """`x` and `dy` contracted over all letters that the weight lacks, in the weight's shape, type
    and sharding.

    Each device contracts its own tokens, and a reduce-scatter sums the parts of all devices to
    where the gradient is stored.
    """
    place = partition_spec(w)
    if place is None or not any((*spec_entries(x), *spec_entries(dy), *place)):  # one device
        return _contract_to_weight(eqn, x, dy, w.dtype)
    layout = _Layout.of(eqn, x, dy, w)

    def _local(x: jax.Array, dy: jax.Array) -> jax.Array:
        dw_of_device = _contract_to_weight(eqn, x, dy, w.dtype)
        return sum_to_place(dw_of_device, layout.stored, layout.summed(eqn.w))

    dy = reshard_to(dy, layout.place(eqn.y))
    dw = jax.shard_map(
        _local,
        in_specs=(partition_spec(x), partition_spec(dy)),
        out_specs=layout.scattered(eqn.w),
        check_vma=False,
    )(x, dy)
    return reshard_to(dw, place)


def _contract_to_weight(eqn: Equation, x: jax.Array, dy: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x` and `dy` contracted to the weight's letters, in that order.

    JAX's own rule contracts (dy, x), which gives the transpose: the copy back, into which XLA's CPU
    backend fuses the activation's derivative, took a fifth of a training step.
    """
    if platform() == "cpu" and x.dtype == jnp.float32 and dy.size < x.size:
        # The backend copies the left operand to transpose it. Let it be the smaller one, and
        # transpose the yet smaller result; in bfloat16 the copy is cheap, and this gains nothing.
        transposed = "".join(sorted(eqn.w, key=lambda letter: letter not in eqn.y))
        dw = barrier(contract(f"{eqn.y},{eqn.x}->{transposed}", dy, x))
        return jnp.transpose(dw, [transposed.index(letter) for letter in eqn.w])
    return contract(f"{eqn.x},{eqn.y}->{eqn.w}", x, dy, dtype=dtype)


def take(w: Any, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table `w` [V, D], an array or a leaf, at `ids` as [B, T, D] in `dtype`; ids must
    lie in [0, V)."""
    if not isinstance(w, jax.Array):
        return w.take(ids_BT).astype(dtype)
    return _rows(w, ids_BT, jnp.dtype(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(table_VD: jax.Array, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    table_VD = gather(table_VD.astype(dtype))
    if jax.sharding.get_abstract_mesh().empty:
        return table_VD.at[ids_BT].get(mode="clip")
    return table_VD.at[ids_BT].get(
        mode="clip", out_sharding=PartitionSpec(*spec_entries(ids_BT), spec_entries(table_VD)[1])
    )


def _rows_forward(table_VD: jax.Array, ids_BT: jax.Array, dtype: jnp.dtype):
    return _rows(table_VD, ids_BT, dtype), (table_VD, ids_BT)


def _rows_backward(dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], dy_BTD: jax.Array):
    """The table's gradient, summed in float32: in bfloat16 the sum of a frequent token stops
    growing at a few hundred terms."""
    table_VD, ids_BT = saved
    place, rows = partition_spec(table_VD), table_VD.shape[0]

    def _added(ids_BT, dy_BTD, rows):
        sums_VD = jnp.zeros((rows, dy_BTD.shape[-1]), jnp.float32)
        # Ids of other devices' rows are out of range and dropped; negative ones count from the end.
        owned = jnp.where(ids_BT < 0, rows, ids_BT)
        return sums_VD.at[owned].add(dy_BTD.astype(jnp.float32), mode="drop").astype(table_VD.dtype)

    if place is None:
        return _added(ids_BT, dy_BTD, rows), None
    # Computation splits the rows (the vocabulary) over `owners`; `stored` splits storage further.
    owners = compute_axes(place[0])
    stored = storage_axes(place)
    summed = {name for entry in spec_entries(dy_BTD)[:2] for name in mesh_axes(entry)}

    def _local(ids_BT, dy_BTD):
        count = rows // math.prod(lax.axis_size(name) for name in owners)
        first = lax.axis_index(owners) * count if owners else 0
        return sum_to_place(_added(ids_BT - first, dy_BTD, count), stored, summed)

    # A device sums whole rows, which `sum_to_place` splits afterwards if storage does.
    dy_BTD = gather_axis(dy_BTD, axis=2)
    ids_BT = reshard_to(ids_BT, PartitionSpec(*spec_entries(dy_BTD)[:2]))
    split = PartitionSpec(as_entry((*owners, *stored[0])), as_entry(stored[1]))
    dtable = jax.shard_map(
        _local,
        in_specs=(partition_spec(ids_BT), partition_spec(dy_BTD)),
        out_specs=split,
        check_vma=False,
    )(ids_BT, dy_BTD)
    return reshard_to(dtable, place), None


_rows.defvjp(_rows_forward, _rows_backward)


def contract(eqn: str, *operands: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """`jnp.einsum` with the result's sharding derived from the operands'; `dtype` is the element
    type of the result.

    XLA's CPU backend multiplies bfloat16 to float32, and widens both operands where a bfloat16
    result is asked for; on a CPU the result is narrowed afterwards instead.
    """
    out = None if unsharded() else result_spec(eqn, *operands)
    if (dtype or jnp.result_type(*operands)) == jnp.bfloat16 and platform() == "cpu":
        return jnp.einsum(
            eqn, *operands, preferred_element_type=jnp.float32, out_sharding=out
        ).astype(jnp.bfloat16)
    return jnp.einsum(eqn, *operands, preferred_element_type=dtype, out_sharding=out)


def add_bias(x: jax.Array, bias: Any) -> jax.Array:
    """`x` [..., F] plus `bias` [F] (or [N, H] onto [..., N, H]), in the dtype of `x`.

    Added in float32, so that the gradient of the bias, a sum over all tokens, is a float32 sum.
    """
    # Aligned explicitly: the tests forbid implicit rank promotion (jax_numpy_rank_promotion).
    row = jnp.expand_dims(bias.astype(jnp.float32), tuple(range(x.ndim - bias.ndim)))
    return (x.astype(jnp.float32) + row).astype(x.dtype)
