"""Low-rank adapters (arXiv:2106.09685) and their weight-decomposed form (DoRA, arXiv:2402.09353) over any leaf.

    LoRA   y = x W + s (x a) b
    DoRA   y = m / |W + s a b| (x W + s (x a) b),   the norm over a column's inputs, without gradient (section 4.3)

`a` has the weight's inputs and R, `b` has R and its outputs, whatever axes those are: [D, R] and [R, N, H] for a query
kernel, [N, H, R] and [R, D] for an output kernel, [D, R] and [R, V] for a table.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.ops.einsum import contract, einsum, take

RANK = "R"


@partial(jax.tree_util.register_dataclass, data_fields=["a", "b", "scale", "magnitude"], meta_fields=["table"])
@dataclass(frozen=True)
class LoraAdapter:
    """What is trained. `scale` [] (one a layer where stacked) is alpha / R, or alpha / sqrt(R) for rsLoRA; `magnitude` has
    the weight's outputs, None without decomposition. `table` says that the inputs are the weight's last axis."""

    a: jax.Array
    b: jax.Array
    scale: jax.Array
    magnitude: jax.Array | None = None
    table: bool = False


@partial(jax.tree_util.register_dataclass, data_fields=["base", "adapter"], meta_fields=[])
@dataclass(frozen=True)
class Lora:
    """A weight with an adapter on it: a leaf like any other. `base` is an array or another leaf."""

    base: Any
    adapter: LoraAdapter

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def einsum(self, eqn: str, x: jax.Array) -> jax.Array:
        """`eqn` of `x` and the adapted weight; the base is contracted as it is."""
        of_inner, of_outer = _split(eqn)
        a, b, scale = self.adapter.a, self.adapter.b, jax.lax.stop_gradient(self.adapter.scale)
        low = contract(of_inner, x, a.astype(x.dtype))
        y = einsum(eqn, x, self.base) + contract(of_outer, low, b.astype(x.dtype)) * scale.astype(x.dtype)
        if self.adapter.magnitude is None:
            return y
        gain = self._gain(jax.lax.stop_gradient(dense(self.base) + self._update())).astype(x.dtype)
        return y * jnp.expand_dims(gain, tuple(range(y.ndim - gain.ndim)))

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of a table [V, D] at `ids`, float32 [..., D]."""
        rows = take(self.base, ids, jnp.float32)
        low = jnp.moveaxis(self.adapter.b.astype(jnp.float32), 0, -1)[ids]
        update = jnp.einsum("...R,DR->...D", low, self.adapter.a.astype(jnp.float32))
        return rows + update * jax.lax.stop_gradient(self.adapter.scale)

    def dense(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The adapted weight as an array: what `merge` makes of it. Stacked leaves give stacked weights."""
        one = Lora._dense
        for _ in range(self.adapter.scale.ndim):
            one = jax.vmap(one)
        return one(self).astype(dtype)

    def _dense(self) -> jax.Array:
        w = dense(self.base) + self._update()
        return w if self.adapter.magnitude is None else w * jnp.expand_dims(self._gain(w), self._inner_axes())

    def _update(self) -> jax.Array:
        """s a b in the weight's own axes, float32."""
        a, b = (x.astype(jnp.float32) for x in (self.adapter.a, self.adapter.b))
        if self.adapter.table:
            return jnp.einsum("DR,RV->VD", a, b) * self.adapter.scale
        return jnp.tensordot(a, b, axes=1) * self.adapter.scale

    def _gain(self, w: jax.Array) -> jax.Array:
        """DoRA's factor of each output: its magnitude over the norm of its column in the adapted weight `w`."""
        return self.adapter.magnitude / jnp.sqrt(jnp.sum(w * w, axis=self._inner_axes()))

    def _inner_axes(self) -> tuple[int, ...]:
        return (1,) if self.adapter.table else tuple(range(self.adapter.a.ndim - 1))


def dense(leaf: Any) -> jax.Array:
    """A leaf as a float32 array."""
    return leaf.astype(jnp.float32) if isinstance(leaf, jax.Array) else leaf.dense()


def _split(eqn: str) -> tuple[str, str]:
    """The two products of an adapter for the one of its weight: "BTD,DNH->BTNH" is "BTD,DR->BTR" and "BTR,RNH->BTNH"."""
    (of_x, of_w), of_y = eqn.split("->")[0].split(","), eqn.split("->")[1]
    inner = "".join(letter for letter in of_w if letter not in of_y)
    outer = "".join(letter for letter in of_w if letter in of_y)
    low = "".join(letter for letter in of_x if letter not in inner) + RANK
    return f"{of_x},{inner}{RANK}->{low}", f"{low},{RANK}{outer}->{of_y}"
