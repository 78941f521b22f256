"""Products of 8-bit weights with activations that are quantized on the way in, each token with a
scale of its own.

    int8   y = s_x s_w sum(x8 w8),   s_x = max |x| / 127 over a token's inputs, the sum in int32
    fp8    the same with 448, the largest of float8_e4m3fn, and a float32 sum (arXiv:2209.05433: activations in e4m3)

The weight has one scale an output, so both scales stand outside the sum, and the chip multiplies
what is held. Where it has no such product (`research.devices.backend.multiplies`) the
weight alone is quantized, which is more exact. The gradient of the activations is that of the
weight-only product: rounding counts as the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research import tree
from research.devices.backend import multiplies, platform
from research.ops.einsum import contract
from research.parallel.placement import spec
from research.weights.over import Over
from research.weights.quantized import Quantized


@partial(jax.tree_util.register_dataclass, data_fields=["base"], meta_fields=[])
@dataclass(frozen=True)
class DynamicQuantized(Over):
    """A leaf over an 8-bit weight with one scale an output; rows and experts are read as the weight
    gives them."""

    base: Quantized

    @property
    def size(self) -> int:
        return self.base.size

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the weight, both quantized. Its backward pass keeps codes and scales and
        nothing of `x`."""
        if not multiplies(self.base.codes.dtype):
            return self.base.einsum(eqn, x)
        return _product(eqn, x, self.base)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]."""
        return self.base.take(ids)

    def grouped(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """Rows [M, I] in groups of these sizes, each times the matrix of its expert, [M, O]; of the
        weight only."""
        return self.base.grouped(x, sizes)

    def gathered(self) -> "DynamicQuantized":
        """This leaf over fewer devices, as `research.ops.einsum.gathered` says."""
        return replace(self, base=self.base.gathered())

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The weight as an array."""
        return self.base.dense(dtype)

    def nbits(self) -> int:
        """Bits of storage, scales included."""
        return self.base.nbits()


def quantize_activations(params: tree.Tree, rules: Sequence[tuple[str, bool]]) -> tree.Tree:
    """The tree with the quantized weights whose first matching rule says True as
    `DynamicQuantized`.

    ValueError for a rule that matches nothing and for a weight that is not of 8 bits with one scale
    an output.
    """
    return on_quantized(params, rules, DynamicQuantized)


def on_quantized(params: tree.Tree, rules: Sequence[tuple[str, bool]], leaf: Any) -> tree.Tree:
    """The tree with `leaf` of each 8-bit weight whose first matching rule says True."""

    def stop(node: Any) -> bool:
        return isinstance(node, Quantized) or not isinstance(node, dict)

    chosen, made = tree.paths(tree.choose(rules, params, stop)), {}
    for path, w in tree.paths(params, stop).items():
        if chosen[path]:
            _check(path, w)
        made[path] = leaf(w) if chosen[path] else w
    return tree.unflatten(made)


def quantize_tokens(
    eqn: str, x: jax.Array, dtype: jnp.dtype, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Codes of `x` in `dtype` and each token's float32 scale, of its shape with 1 for the axes that
    `eqn` sums over.

    Rounded to the nearest or, with a key, stochastically to an integer beside, so that the mean of
    the codes is exact.
    """
    of_x, of_y = eqn.split(",")[0], eqn.split("->")[1]
    axes = tuple(at for at, letter in enumerate(of_x) if letter not in of_y)
    floating = jnp.issubdtype(dtype, jnp.floating)
    top = float(jnp.finfo(dtype).max if floating else jnp.iinfo(dtype).max)
    x = x.astype(jnp.float32)
    absmax = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    codes = x * (top * jnp.where(absmax == 0, 0, 1 / jnp.where(absmax == 0, 1, absmax)))
    if key is not None:
        sharding = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding
        # The sum of 127 and nearly 1 is 128 in float32.
        codes = jnp.minimum(
            jnp.floor(codes + jax.random.uniform(key, x.shape, out_sharding=sharding)), top
        )
    elif not floating:
        codes = jnp.round(codes)
    return codes.astype(dtype), absmax / top


def multiply_codes(eqn: str, codes: jax.Array, scale: jax.Array, w: Quantized) -> jax.Array:
    """`eqn` of quantized tokens and the weight, float32: the sum of products of codes, times both
    scales."""
    w = w.gathered()
    of_x, of_y = eqn.split(",")[0], eqn.split("->")[1]
    y = sum_codes(eqn, codes, whole_codes(w)) * scale_of(eqn, scale)
    outputs = jnp.squeeze(w.scale, (w.scale.ndim - w.after - 2, w.scale.ndim - w.after - 1))
    return y * jnp.expand_dims(
        outputs, tuple(at for at, letter in enumerate(of_y) if letter in of_x)
    )


def sum_codes(eqn: str, first: jax.Array, second: jax.Array) -> jax.Array:
    """`eqn` of two arrays of codes, float32: sums of integers in int32, of float8 in float32."""
    if not jnp.issubdtype(second.dtype, jnp.floating):
        return contract(eqn, first, second, dtype=jnp.int32).astype(jnp.float32)
    if (
        platform() == "cpu"
    ):  # which has no float8 product of its own, while float32 holds each of them exactly
        first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return contract(eqn, first, second, dtype=jnp.float32)


def scale_of(eqn: str, scale: jax.Array) -> jax.Array:
    """The scales of `eqn`'s first operand, as `quantize_tokens` gives them, in the axes of its
    result."""
    of_x, of_y = eqn.split(",")[0], eqn.split("->")[1]
    kept = jnp.squeeze(scale, tuple(at for at, letter in enumerate(of_x) if letter not in of_y))
    return jnp.expand_dims(kept, tuple(at for at, letter in enumerate(of_y) if letter not in of_x))


def whole_codes(w: Quantized) -> jax.Array:
    """The codes in the shape of the weight."""
    if jax.sharding.get_abstract_mesh().empty:
        return w.codes.reshape(w.shape)
    at, entries = w.codes.ndim - w.after - 2, spec(w.codes)
    where = PartitionSpec(*entries[:at], *(None,) * len(w.inputs), *entries[at + 2 :])
    return jnp.reshape(w.codes, w.shape, out_sharding=where)


def _check(path: str, w: Any) -> None:
    if not isinstance(w, Quantized) or w.codes.dtype not in (
        jnp.int8,
        jnp.float8_e4m3fn,
        jnp.float8_e5m2,
    ):
        got = w.format if isinstance(w, Quantized) else type(w).__name__
        raise ValueError(
            f"{path} is {got}; quantize it to int8 or fp8 for products with quantized activations"
        )
    if w.codes.shape[w.codes.ndim - w.after - 2] != 1:
        raise ValueError(
            f"{path} has a scale for each {w.group} inputs; set config.quantize.group to 0"
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(eqn: str, x: jax.Array, w: Quantized) -> jax.Array:
    held = w.codes.dtype
    codes, scale = quantize_tokens(
        eqn, x, jnp.float8_e4m3fn if jnp.issubdtype(held, jnp.floating) else held
    )
    return multiply_codes(eqn, codes, scale, w).astype(x.dtype)


def _forward(eqn: str, x: jax.Array, w: Quantized):
    # The weight-only product is there for its pullback, which keeps the weight alone; the compiler
    # drops its value.
    _, pull = jax.vjp(partial(w.einsum, eqn), x)
    return _product(eqn, x, w), pull


def _backward(eqn: str, pull: Any, dy: jax.Array):
    return *pull(dy), None


_product.defvjp(_forward, _backward)
