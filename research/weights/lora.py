"""Low-rank adapters (arXiv:2106.09685) and their weight-decomposed form (DoRA, arXiv:2402.09353)
over any leaf.

    LoRA   y = x W + s (drop(x) a) b
    DoRA   y = m / |W + s a b| (x W + s (drop(x) a) b)

|.| is the norm of each column over its inputs; it counts as a constant in the backward pass
(DoRA, section 4.3).

`a` has the weight's input axes and R, `b` has R and its output axes: [D, R] and [R, N, H] for a
query kernel, [N, H, R] and [R, D] for an output kernel, [D, R] and [R, V] for a table.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from research import tree
from research.devices.backend import platform
from research.ops.einsum import contract, einsum, take
from research.ops.grouped import grouped
from research.ops.kernels.equation import parse
from research.parallel.placement import gather
from research.scopes import scope
from research.weights.grouped_factors import update_by_all
from research.weights.wrapper import Wrapper, dense, gathered

# The letter of the rank in equations; the legend keeps it free for this.
RANK = "R"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["a", "b", "scale", "magnitude"],
    meta_fields=["table", "dropout"],
)
@dataclass(frozen=True)
class LoraAdapter:
    """The adapter of one weight, or of a stack of them.

    a, b        [inputs, R] and [R, outputs], the trained factors
    scale       float32 [], or [layers] if stacked: alpha / R, or alpha / sqrt(R) for rsLoRA. It is
                an array so that layers and adapters may differ; it is a constant, never trained
    magnitude   DoRA's trained m, with the weight's output axes; None for plain LoRA
    table       True if the weight's inputs are its last axis
    dropout     share of the adapter's inputs that are dropped in training
    """

    a: jax.Array
    b: jax.Array
    scale: jax.Array
    magnitude: jax.Array | None = None
    table: bool = False
    dropout: float = 0.0


@partial(jax.tree_util.register_dataclass, data_fields=["base", "adapter", "key"], meta_fields=[])
@dataclass(frozen=True)
class Lora(Wrapper):
    """A weight with a low-rank adapter. `base` is an array or another leaf. `key` is the key data
    of the adapter's dropout, uint32 [2], or [layers, 2] if stacked; None turns dropout off."""

    base: Any
    adapter: LoraAdapter
    key: jax.Array | None = None

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the adapted weight, in the dtype of `x`. The base may stay quantized:
        the update is a product of its own."""
        # (x a) b and not x (a b): R is small, so these are two thin products, and without DoRA
        # the update is never an array of the weight's size.
        to_low, to_y = _low_rank_products(eqn)
        # Without the barrier the GPU compiler merges both products of `x` into one, for which it
        # copies the base and `a` into one matrix.
        with scope("adapter"):
            low = einsum(to_low, lax.optimization_barrier(self._dropped(x)), self.adapter.a)
            update = einsum(to_y, low, self.adapter.b) * self._scale().astype(x.dtype)
        y = einsum(eqn, x, self.base) + update
        if self.adapter.magnitude is None:
            return y
        # A norm over all inputs needs whole columns on every device.
        leaf = self.gathered()
        # Section 4.3: the norm counts as a constant, which saves the memory of its backward pass.
        gain = leaf._gain(lax.stop_gradient(dense(leaf.base) + leaf._update())).astype(x.dtype)
        return y * jnp.expand_dims(gain, tuple(range(y.ndim - gain.ndim)))

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids` [B, T], float32 [B, T, D]."""
        rows_BTD = take(self.base, ids, jnp.float32)
        # Looked up, the table's one-hot input meets `b` first: its rows [V, R] are read and then
        # multiplied with `a`.
        with scope("adapter"):
            low_BTR = take(jnp.moveaxis(self.adapter.b, 0, -1), ids, jnp.float32)
            a_DR = gather(self.adapter.a.astype(jnp.float32))
            return rows_BTD + contract("BTR,DR->BTD", low_BTR, a_DR) * self._scale()

    def grouped(self, x: jax.Array, sizes: jax.Array, implementation: str = "auto") -> jax.Array:
        """Rows [M, I] in groups of `sizes` [E], each group times its expert's matrix, [M, O].
        ValueError under DoRA."""
        if self.adapter.magnitude is not None:
            raise ValueError(
                "the experts' matrices have no DoRA; leave them out of config.lora.targets or take "
                "lora"
            )
        a, b, scale = self.adapter.a, self.adapter.b, self._scale()
        if platform() == "gpu":
            y = grouped(x, self.base, sizes, implementation=implementation)
            with scope("adapter"):
                return y + update_by_all(self._dropped_rows(x), a, b, scale, sizes)
        # Experts' factors are stacks too, [E, I, R] and [E, R, O], and follow the same groups of
        # rows.
        with scope("adapter"):
            low = grouped(self._dropped_rows(x), a, sizes)
            scale = jnp.repeat(scale, sizes, total_repeat_length=x.shape[0]).astype(x.dtype)
        y = grouped(x, self.base, sizes, implementation=implementation)
        with scope("adapter"):
            return y + grouped(low, b, sizes) * scale[:, None]

    def gathered(self) -> "Lora":
        """This leaf with the mesh axes that only store it gathered."""
        return replace(self, base=gathered(self.base), adapter=jax.tree.map(gather, self.adapter))

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The adapted weight as an array; stacked weights are made dense layer by layer."""
        # `tensordot` and the norms count axes from the front, so stacked axes are mapped over.
        one = Lora._dense
        # `scale` has exactly the stacked axes, so it says how often to map.
        for _ in range(self.adapter.scale.ndim):
            one = jax.vmap(one)
        return one(self).astype(dtype)

    def nbits(self) -> int:
        """Bits of storage of the weight and its adapter, without the dropout key."""
        return tree.nbits((self.base, self.adapter))

    def _scale(self) -> jax.Array:
        # A leaf of the trainable tree, so autodiff reaches it; its gradient is zero.
        return jax.lax.stop_gradient(self.adapter.scale)

    @scope("dropout")
    def _dropped(self, x: jax.Array) -> jax.Array:
        rate = self.adapter.dropout
        if self.key is None or not rate:
            return x
        sharding = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(x).sharding
        kept = jax.random.bernoulli(
            jax.random.wrap_key_data(self.key), 1 - rate, x.shape, out_sharding=sharding
        )
        # Divided by the kept share, so that the expected input is that of evaluation.
        return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)

    @scope("dropout")
    def _dropped_rows(self, x: jax.Array) -> jax.Array:
        """`_dropped` for the rows of all experts at once, which takes one key and not one for each
        expert. Devices in a `shard_map` hold other rows, and draw other masks."""
        if self.key is None or not self.adapter.dropout:
            return x
        key, mesh = jax.random.wrap_key_data(self.key[0]), jax.sharding.get_abstract_mesh()
        for axis in () if mesh.empty else mesh.manual_axes:
            key = jax.random.fold_in(key, lax.axis_index(axis))
        share = 1 - self.adapter.dropout
        return jnp.where(jax.random.bernoulli(key, share, x.shape), x / share, 0).astype(x.dtype)

    def _dense(self) -> jax.Array:
        """The adapted weight of a leaf that is no stack."""
        w = dense(self.base) + self._update()
        if self.adapter.magnitude is None:
            return w
        return w * jnp.expand_dims(self._gain(w), self._inner_axes())

    @scope("adapter")
    def _update(self) -> jax.Array:
        """s a b in the weight's own axes, float32."""
        a, b = (x.astype(jnp.float32) for x in (self.adapter.a, self.adapter.b))
        if self.adapter.table:
            return jnp.einsum("DR,RV->VD", a, b) * self.adapter.scale
        return jnp.tensordot(a, b, axes=1) * self.adapter.scale

    @scope("adapter")
    def _gain(self, w: jax.Array) -> jax.Array:
        """DoRA's factor of each output: its magnitude over the norm of its column in the adapted
        weight `w`."""
        norms = jnp.sqrt(jnp.sum(w * w, axis=self._inner_axes()))
        return magnitude_gain(cast(jax.Array, self.adapter.magnitude), norms)

    def _inner_axes(self) -> tuple[int, ...]:
        return (1,) if self.adapter.table else tuple(range(self.adapter.a.ndim - 1))


def magnitude_gain(magnitude: jax.Array, norms: jax.Array) -> jax.Array:
    """magnitude / norms, and 1 for a column of norm 0, whose product is 0 under any factor.

    Published checkpoints have such columns; their magnitude starts at 0 too, and 0 / 0 would make
    all that follows NaN.
    """
    # The inner `where` keeps the division finite, whose gradient is computed for both branches.
    return jnp.where(norms > 0, magnitude / jnp.where(norms > 0, norms, 1), 1)


def _low_rank_products(eqn: str) -> tuple[str, str]:
    """The two products of an adapter for the one of its weight: "BTD,DNH->BTNH" becomes
    "BTD,DR->BTR" and "BTR,RNH->BTNH"."""
    of = parse(eqn)
    low = "".join(letter for letter in of.x if letter not in of.inputs) + RANK
    return f"{of.x},{of.inputs}{RANK}->{low}", f"{low},{RANK}{of.outputs}->{of.y}"
