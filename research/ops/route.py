"""Mixture of experts: top-k routing without dropped tokens, and expert parallelism by shard_map.

On a TPU tokens go to the devices of their experts and back (`research.ops.exchange`). Elsewhere,
and where that moves no less, tokens are gathered over the expert axis, each device sorts the
assignments to its own experts to the front, and a reduce-scatter sums the results on the devices
that own the tokens. A device multiplies its rows group by group (`research.ops.grouped`). Experts
have no capacity limit, so the result does not depend on the mesh.

Letters: B batch, T time, D model, F feed-forward, E experts, k experts of a token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from research.devices.backend import platform
from research.ops.exchange import Exchange
from research.ops.grouped import biased, gathered, grouped
from research.ops.kernels import visible_share
from research.parallel.placement import contiguous, mesh_axes, spec_entries, storage_axes
from research.scopes import scope


@scope("routing")
def top_k(
    logits_BTE: jax.Array, k: int, normalized: bool = True, total_BT1: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mixing weights float32 [B, T, k] and the ids of their experts int32 [B, T, k], those of the k
    largest logits. The weights are a softmax over these (arXiv:2401.04088, section 2.1), or unless
    `normalized` their part of the softmax over all experts (arXiv:2409.02060, section 2), whose
    logarithmic sum is `total_BT1` where some of the logits are hidden."""
    # The softmax over the chosen logits alone equals the full one renormalised over the chosen.
    largest_BTk, ids_BTk = lax.top_k(logits_BTE, k)
    if normalized:
        return jax.nn.softmax(largest_BTk, axis=-1), ids_BTk
    if total_BT1 is None:
        total_BT1 = jax.nn.logsumexp(logits_BTE, axis=-1)[:, :, None]
    return jnp.exp(largest_BTk - total_BT1), ids_BTk


@scope("routing")
def load_balance(logits_BTE: jax.Array, ids_BTk: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """E * sum over experts of (share of assignments) * (mean router probability): a float32 scalar,
    1 for uniform routing (arXiv:2101.03961, eq. 4; each of a token's k assignments counts 1/k).

    `weights_BT` is 1 for tokens and 0 for padding.

    A product of two means over the tokens, it is no sum over them: the mean of the parts of a batch
    is not the value of the whole. Under gradient accumulation each micro-batch is balanced by
    itself. The whole batch's gradient would need the shares of all micro-batches before that of the
    first one, so a second forward pass: a quarter to a third of a step's computation.
    """
    experts = logits_BTE.shape[-1]
    # Weights of the mean over tokens; padding gets 0.
    counted = weights_BT / jnp.maximum(jnp.sum(weights_BT), 1.0)
    # The shares are counts without a gradient; the probabilities carry it to the router.
    probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    share_E = jnp.sum(
        jnp.mean(jax.nn.one_hot(ids_BTk, experts), axis=2) * counted[:, :, None], axis=(0, 1)
    )
    prob_E = jnp.sum(probs_BTE * counted[:, :, None], axis=(0, 1))
    return experts * jnp.sum(share_E * prob_E)


@scope("experts")
def experts(
    x_BTD: jax.Array,
    weights_BTk: jax.Array,
    ids_BTk: jax.Array,
    gate_EDF: Any,
    up_EDF: Any,
    down_EFD: Any,
    hidden: Callable[[jax.Array, jax.Array], jax.Array],
    implementation: str = "auto",
    biases_EF: tuple[jax.Array, ...] = (),
) -> jax.Array:
    """Sum over a token's experts of weight * hidden(x gate, x up) down, [B, T, D] in the dtype of
    `x`; `hidden` is elementwise. `biases` are added to x gate and x up.

    The matrices are arrays or leaves (`research.weights.leaf.Leaf`). An array is gathered inside
    the shard_map, where it is multiplied, so that a single collective sums and scatters its
    gradient. A leaf is gathered before. `implementation` is that of `grouped`.
    """
    matrices, number = (gate_EDF, up_EDF, down_EFD), gate_EDF.shape[0]
    # Gathering inside concatenates shards, which is right where storage axes split a dimension
    # last.
    inside = [isinstance(w, jax.Array) and contiguous(w) for w in matrices]
    stored = [storage_axes(spec_entries(w)) if here else () for w, here in zip(matrices, inside)]
    matrices = [w if here else gathered(w, x_BTD.dtype) for w, here in zip(matrices, inside)]
    biases_EF = tuple(gathered(bias, jnp.float32) for bias in biases_EF)
    if jax.sharding.get_abstract_mesh().empty:
        products = [partial(grouped, w=w, implementation=implementation) for w in matrices]
        products = _biased(products, biases_EF)
        return _local(x_BTD, weights_BTk, ids_BTk, products, hidden, 0, number)

    specs, bias_specs = jax.tree.map(
        lambda array: PartitionSpec(*spec_entries(array)), (matrices, biases_EF)
    )
    # Not where the batch is too small, as in decoding.
    split_tokens = "expert" in mesh_axes(spec_entries(x_BTD)[0])

    def _island(x, weights, ids, matrices, biases):
        products = [
            partial(grouped, w=w, stored=axes, implementation=implementation)
            for w, axes in zip(matrices, stored)
        ]
        products = _biased(products, biases)
        return _device(x, weights, ids, products, hidden, number, _names(specs), split_tokens)

    tokens = PartitionSpec(*spec_entries(x_BTD))
    placed = tokens, tokens, tokens, specs, bias_specs
    island = jax.shard_map(_island, in_specs=placed, out_specs=tokens, check_vma=False)
    return island(x_BTD, weights_BTk, ids_BTk, matrices, biases_EF)


def _biased(products: list[Callable], biases_EF: Sequence[jax.Array]) -> list[Callable]:
    """The products by gate and up with their biases, if there are any, and that by down."""
    pairs = zip(products, biases_EF)
    return [
        *(partial(biased, product, bias) for product, bias in pairs),
        *products[len(biases_EF) :],
    ]


def _device(
    x: jax.Array,
    weights: jax.Array,
    ids: jax.Array,
    products: Sequence[Callable],
    hidden: Callable[[jax.Array, jax.Array], jax.Array],
    number: int,
    split: set[str],
    split_tokens: bool,
) -> jax.Array:
    """What a device makes of its tokens [B, T, D], inside `shard_map`: `number` experts in all,
    whose matrices are split over the mesh axes `split`; the tokens too are split over the expert
    axis if `split_tokens`."""
    devices = lax.axis_size("expert") if "expert" in split else 1
    first = lax.axis_index("expert") * (number // devices) if "expert" in split else 0
    exchanges = split_tokens and _exchanges(ids.shape[-1], devices)
    if split_tokens and "expert" in split and not exchanges:
        # Each device sees the tokens of all of them, and `_local` keeps the assignments to the
        # device's own experts.
        x, weights, ids = (
            lax.all_gather(a, "expert", axis=0, tiled=True) for a in (x, weights, ids)
        )
    # For cost estimates: on average over devices this share of the rows is multiplied.
    with visible_share.scope(ragged=1 / devices):
        multiply = _exchanged if exchanges else _local
        y = multiply(x, weights, ids, products, hidden, first, number // devices)
    return _summed(y, split - {"expert"} if exchanges else split, split_tokens)


def _summed(y_BTD: jax.Array, split: set[str], split_tokens: bool) -> jax.Array:
    """The devices' contributions summed over the tensor axis (shards of a matrix) and the expert
    axis (other experts); each token's sum ends on the devices that own the token."""
    y_BTD = lax.psum(y_BTD, "tensor") if "tensor" in split else y_BTD
    if "expert" not in split:
        return y_BTD
    if split_tokens:
        # Half of what an all-reduce moves: nobody needs the sums of others' tokens.
        return lax.psum_scatter(y_BTD, "expert", scatter_dimension=0, tiled=True)
    return lax.psum(y_BTD, "expert")


def _names(specs: Any) -> set[str]:
    """All mesh axes that a tree of PartitionSpecs names."""
    leaves = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, PartitionSpec))
    return {name for spec in leaves for entry in spec for name in mesh_axes(entry)}


def _exchanges(k: int, devices: int) -> bool:
    """Whether tokens go to their experts one by one: k copies each way, where a gather and a
    scattered sum move `devices` copies. Only TPU's compiler was asked, nothing was timed."""
    return platform() == "tpu" and k < devices


def _local(
    x_BTD: jax.Array,
    weights_BTk: jax.Array,
    ids_BTk: jax.Array,
    products: Sequence[Callable],
    hidden: Callable[[jax.Array, jax.Array], jax.Array],
    first: jax.Array | int,
    count: int,
) -> jax.Array:
    """The contribution [B, T, D] of experts `first` to `first + count - 1`; assignments to others
    add nothing.

    `products` multiply by the experts' gate, up and down matrices: called (rows, sizes_E=...), see
    `research.ops.grouped.grouped`.
    """
    B, T, D = x_BTD.shape
    mine, order, sizes = _sorted(ids_BTk, first, count)
    # Assignments lie token by token, k of them each.
    token = order // ids_BTk.shape[-1]
    with scope("routing"):
        rows = x_BTD.reshape(-1, D)[token]
        weights = jnp.where(mine, weights_BTk.reshape(-1), 0.0)[order].astype(x_BTD.dtype)
    out = _feed_forward(rows, weights, sizes, products, hidden)
    # Rows past the last group belong to other devices; what a product leaves there is unspecified.
    out = jnp.where(mine[order][:, None], out, 0)
    # A token's k contributions meet in its own row.
    with scope("routing"):
        return jnp.zeros((B * T, D), x_BTD.dtype).at[token].add(out).reshape(B, T, D)


def _exchanged(
    x_BTD: jax.Array,
    weights_BTk: jax.Array,
    ids_BTk: jax.Array,
    products: Sequence[Callable],
    hidden: Callable[[jax.Array, jax.Array], jax.Array],
    first: jax.Array,
    count: int,
) -> jax.Array:
    """The sum over all experts of this device's tokens [B, T, D]; the device itself multiplies the
    rows of experts `first` to `first + count - 1`, whose tokens are sent to it."""
    (B, T, D), k = x_BTD.shape, ids_BTk.shape[-1]
    experts = count * lax.axis_size("expert")
    _, order, counts_E = _sorted(ids_BTk, 0, experts)
    with scope("routing"):
        exchange = Exchange.of(counts_E, B * T * k)
        rows = exchange.send(x_BTD.reshape(-1, D)[order // k])
    # Ids and weights are small, and in the order of all devices' tokens they sort to the order in
    # which rows arrive.
    weights, ids = (lax.all_gather(a, "expert", tiled=True) for a in (weights_BTk, ids_BTk))
    mine, arrived, sizes = _sorted(ids, first, count)
    weights = jnp.where(mine, weights.reshape(-1), 0.0)[arrived].astype(x_BTD.dtype)
    out = _feed_forward(rows, weights, sizes, products, hidden)
    with scope("routing"):
        out = exchange.take_back(out)
        return jnp.zeros((B * T, D), x_BTD.dtype).at[order // k].add(out).reshape(B, T, D)


@scope("routing")
def _sorted(
    ids_BTk: jax.Array, first: jax.Array | int, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the B * T * k assignments of tokens to experts: which are to experts `first` to `first +
    count - 1`, their order by expert with all others last, and int32 [count], how many are to each
    of the experts."""
    expert = ids_BTk.reshape(-1) - first
    mine = (expert >= 0) & (expert < count)
    order = jnp.argsort(jnp.where(mine, expert, count), stable=True)
    # Assignments to other devices' experts are counted in a last bin, which is dropped.
    sizes = jnp.bincount(jnp.where(mine, expert, count), length=count + 1)[:count]
    return mine, order, sizes.astype(jnp.int32)


def _feed_forward(
    rows: jax.Array,
    weights: jax.Array,
    sizes: jax.Array,
    products: Sequence[Callable],
    hidden: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Weighted results [M, D] of rows [M, D], one for each assignment, in groups of `sizes`."""
    gate, up, down = products
    # Weighted before the last product and not after it, where the gradient of the weights would
    # need the product's result.
    rows = hidden(gate(rows, sizes_E=sizes), up(rows, sizes_E=sizes)) * weights[:, None]
    return down(rows, sizes_E=sizes)
