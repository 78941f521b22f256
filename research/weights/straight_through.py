"""Quantization-aware training: a float weight whose products are those of its quantized form.

    y = x Q(W),   dW = x^T dy

Rounding counts as the identity in the backward pass, "straight-through" (arXiv:1308.3432, section
4). The float parameters are trained as usual; quantized, they equal what the forward pass saw:

    loss(params) = objective(straight_through(params, specs, rules, group))
    quantize(params, specs, rules, group)

With a key all three products of an int8 weight are products of integers: x W as in
`research.weights.dynamic`, and both of the backward pass with stochastic rounding, which keeps the
expected gradient exact (arXiv:1502.02551, section 3.2).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research import tree
from research.devices.backend import multiplies
from research.ops.einsum import einsum
from research.ops.kernels.equation import parse
from research.parallel.placement import gather, partition_spec, reshard_to, spec_entries
from research.weights.code_products import (
    multiply_codes,
    quantize_tokens,
    scale_of_outputs,
    scale_of_tokens,
    sum_codes,
    unite_codes,
)
from research.weights.leaf import Leaf
from research.weights.matrices import split_axes
from research.weights.quantized import Quantized, quantize_array


@dataclass(frozen=True)
class Rounding:
    """How a weight is quantized: the arguments of `quantize_array`, and `axes`, the number of axes
    of one matrix without layers and experts."""

    format: str
    inputs: int
    axes: int
    group: int | None = None

    def quantized(self, w: jax.Array) -> Quantized:
        """`w` in the format. On a mesh every device rounds the whole weight, because blocks of
        doubly quantized scales may span several devices' parts."""
        if not jax.sharding.get_abstract_mesh().empty:
            w = jax.reshard(w, PartitionSpec())
        return quantize_array(
            w, self.format, inputs=self.inputs, stacked=w.ndim - self.axes, group=self.group
        )


@partial(jax.tree_util.register_dataclass, data_fields=["w", "key"], meta_fields=["rounding"])
@dataclass(frozen=True)
class Rounded(Leaf):
    """A leaf over the trained float array `w`, quantized anew in every product.

    `key` is key data, uint32 [2], or [layers, 2] if stacked: it makes all three products of an int8
    weight integer products. None multiplies with the dequantized weight.
    """

    w: jax.Array
    rounding: Rounding
    key: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.w.shape

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the quantized weight, in the dtype of `x`. The backward pass rounds
        again instead of keeping the rounded weight."""
        if self.key is None or not multiplies(jnp.int8):
            return _product(eqn, self.rounding, x, self.w)
        return _integers(eqn, self.rounding, x, self.w, self.key)

    def gathered(self) -> jax.Array:
        """The rounded weight as an array, gathered over storage axes. A leaf could not be gathered
        later: rounding a part of a weight is not a part of the rounded weight."""
        return gather(self.dense())

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The quantized weight as an array; its gradient passes to `w` unchanged."""
        return _dense(self.rounding, self.w).astype(dtype)

    def nbits(self) -> int:
        """Bits of storage of the float array that is trained."""
        return tree.nbits(self.w)


def straight_through(
    params: tree.Tree,
    specs: tree.Tree,
    rules: Sequence[tuple[str, str | None]],
    group: int | None = None,
    key: jax.Array | None = None,
) -> tree.Tree:
    """The tree with each matrix as `Rounded` to the format that its first matching rule names; None
    leaves a weight unchanged.

    `key` seeds the stochastic rounding of one step's gradients. ValueError for a rule that matches
    nothing or chooses a parameter that is not a matrix, for groups that do not divide the inputs,
    and for a key with any format but int8 with one scale for each output.
    """
    formats = tree.paths(tree.choose(rules, specs), is_leaf=lambda node: node is None)
    leaves, by_path = {}, tree.paths(specs)
    for path, w in tree.paths(params, is_leaf=lambda node: not isinstance(node, dict)).items():
        format = formats[path]
        leaves[path] = w if format is None else _rounded(path, w, by_path[path], format, group, key)
    return tree.unflatten(leaves)


def _rounded(
    path: str, w: jax.Array, spec, format: str, group: int | None, key: jax.Array | None
) -> Rounded:
    if not isinstance(w, jax.Array):
        raise ValueError(f"{path} is a {type(w).__name__} already; train the plain parameters")
    if key is not None and (format != "int8" or group):
        got = f"{format} with group {group}"
        raise ValueError(
            f"{path}: integer gradients are of int8 with one scale an output, not {got}; set key "
            "to None"
        )
    stacked = len(split_axes(path, spec)[0])
    leaf = Rounded(w, Rounding(format, spec.inputs, w.ndim - stacked, group))
    try:
        # Shapes alone show whether groups fit, before a step is compiled.
        jax.eval_shape(leaf.dense)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if key is None:
        return leaf
    # Each weight, and each of its layers, rounds with randomness of its own.
    weight_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return replace(leaf, key=jax.random.key_data(jax.random.split(weight_key, w.shape[:stacked])))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(rounding: Rounding, w: jax.Array) -> jax.Array:
    return reshard_to(rounding.quantized(w).dense(), partition_spec(w)).astype(w.dtype)


# The straight-through estimator itself: dw passes as if rounding were the identity.
_dense.defvjp(lambda rounding, w: (_dense(rounding, w), None), lambda rounding, _, dw: (dw,))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(eqn: str, rounding: Rounding, x: jax.Array, w: jax.Array) -> jax.Array:
    return einsum(eqn, x, _dense(rounding, w))


def _product_forward(eqn: str, rounding: Rounding, x: jax.Array, w: jax.Array):
    return _product(eqn, rounding, x, w), (x, w)


def _product_backward(
    eqn: str, rounding: Rounding, saved: tuple[jax.Array, jax.Array], dy: jax.Array
):
    # The vjp of the dense product; `_dense`'s own vjp passes dw through the rounding.
    _, pull = jax.vjp(lambda x, w: einsum(eqn, x, _dense(rounding, w)), *saved)
    return pull(dy)


_product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _integers(
    eqn: str, rounding: Rounding, x: jax.Array, w: jax.Array, key: jax.Array
) -> jax.Array:
    return multiply_codes(eqn, *quantize_tokens(eqn, x, jnp.int8), _quantized(rounding, w)).astype(
        x.dtype
    )


def _integers_forward(eqn: str, rounding: Rounding, x: jax.Array, w: jax.Array, key: jax.Array):
    return _integers(eqn, rounding, x, w, key), (x, w, key)


def _integers_backward(eqn: str, rounding: Rounding, saved: tuple[jax.Array, ...], dy: jax.Array):
    """Both gradients as integer products. What is summed shares a scale, so the operands are
    quantized anew for each.

    The weight's scales stand inside the sum over outputs and are made part of `dy` before it is
    rounded.
    """
    x, w, key = saved
    of_x, of_w, of_y = parse(eqn)
    # One key for each array that is rounded at random: dy for dx, then x and dy for dw.
    keys, rounded = jax.random.split(jax.random.wrap_key_data(key), 3), _quantized(rounding, w)
    to_x = parse(eqn).to_x
    codes, scales = quantize_tokens(to_x, dy * scale_of_outputs(eqn, rounded), jnp.int8, keys[0])
    # dx = sum over outputs of (dy s_w) w8: the scales of the weight went into `dy` above.
    dx = sum_codes(to_x, codes, unite_codes(rounded)) * scale_of_tokens(to_x, scales)

    # dw sums over tokens, so each operand has one scale for each of its other letters. Both are
    # quantized by an equation in which they come first, as `quantize_tokens` wants them.
    to_w, to_w_of_y = f"{of_x},{of_y}->{of_w}", f"{of_y},{of_x}->{of_w}"
    # The first operand's scale is one for each of its letters that survive, here each input.
    x_codes, x_scales = quantize_tokens(to_w, x, jnp.int8, keys[1])
    y_codes, y_scales = quantize_tokens(to_w_of_y, dy, jnp.int8, keys[2])
    dw = sum_codes(to_w, x_codes, y_codes) * scale_of_tokens(to_w, x_scales)
    dw = dw * scale_of_tokens(to_w_of_y, y_scales)
    return (
        reshard_to(dx.astype(x.dtype), partition_spec(x)),
        reshard_to(dw.astype(w.dtype), partition_spec(w)),
        None,
    )


_integers.defvjp(_integers_forward, _integers_backward)


def _quantized(rounding: Rounding, w: jax.Array) -> Quantized:
    """The quantized weight, its outputs split as those of `w` are in computation."""
    quantized = rounding.quantized(w)
    if jax.sharding.get_abstract_mesh().empty:
        return quantized
    entries = spec_entries(gather(w))
    # The inputs stay whole on each device, as the rounding left them; only outputs are split.
    outputs = entries[rounding.inputs :] if rounding.inputs > 0 else ()
    stacked = entries[:-1] if rounding.inputs < 0 else ()
    place = PartitionSpec(*stacked, None, None, *outputs)
    return replace(
        quantized,
        codes=jax.reshard(quantized.codes, place),
        scale=jax.reshard(quantized.scale, place),
    )
