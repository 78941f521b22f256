"""Rows of tokens on their way to the devices of their experts, and back: two ragged all-to-alls.

A row is an assignment of a token to an expert. At home, on the device of its token, rows are sorted
by expert. Away, on the device of its expert, they are sorted by expert and then by the device that
they come from, so that they arrive in groups and nothing is sorted again.

Letters: P devices along the expert axis, E experts, C = E / P of them on each device, D model.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

AXIS = "expert"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["first_home_E", "first_away_PE", "counts_PE"],
    meta_fields=["home", "away"],
)
@dataclass(frozen=True)
class Exchange:
    """Where the rows of each pair (device, expert) lie at home and away, inside `shard_map`.

    first_home_E    the first row of an expert at home, on this device
    first_away_PE   the first row of a device and an expert away, on the expert's device
    counts_PE       how many rows a device has for an expert
    home, away      rows there is room for: P * home may arrive at one device
    """

    first_home_E: jax.Array
    first_away_PE: jax.Array
    counts_PE: jax.Array
    home: int
    away: int

    @classmethod
    def of(cls, counts_E: jax.Array, home: int) -> "Exchange":
        """The exchange for `home` rows, `counts` [E] of them for each expert, sorted by expert."""
        devices = lax.axis_size(AXIS)
        counts_PE = lax.all_gather(counts_E, AXIS)
        # Of an expert's rows those of earlier devices come first, before them all rows of the
        # earlier experts of its device.
        earlier_PE = jnp.cumsum(counts_PE, 0) - counts_PE
        total_PC = jnp.sum(counts_PE, 0).reshape(devices, -1)
        first_E = (jnp.cumsum(total_PC, 1) - total_PC).reshape(-1)
        first_home_E = jnp.cumsum(counts_E) - counts_E
        return cls(first_home_E, first_E[None] + earlier_PE, counts_PE, home, devices * home)

    def send(self, rows_MD: jax.Array) -> jax.Array:
        """Rows from home [home, D] away, as [away, D] with zeros behind the last group."""
        return _sent(False, rows_MD, self)

    def take_back(self, rows_MD: jax.Array) -> jax.Array:
        """Rows from away [away, D] home, as [home, D]; those behind the last group stay."""
        return _sent(True, rows_MD, self)

    def move(self, rows_MD: jax.Array, back: bool) -> jax.Array:
        """`send`, or with `back` `take_back`, each of which is the other's transpose."""
        me, devices, experts = lax.axis_index(AXIS), *self.counts_PE.shape
        count = experts // devices  # of experts on a device
        # Pairs with another device: by expert where rows leave home, by device and own expert where
        # they have arrived.
        at_home = self.first_home_E, self.counts_PE[me], self.first_away_PE[me]
        starts_PE = jnp.cumsum(self.counts_PE, 1) - self.counts_PE
        away = [
            lax.dynamic_slice_in_dim(of_PE, me * count, count, 1).reshape(-1)
            for of_PE in (self.first_away_PE, self.counts_PE, starts_PE)
        ]
        (first, sizes, there), (_, arriving, _) = (away, at_home) if back else (at_home, away)
        out = jnp.zeros((self.home if back else self.away, rows_MD.shape[1]), rows_MD.dtype)
        return lax.ragged_all_to_all(rows_MD, out, first, sizes, there, arriving, axis_name=AXIS)


# JAX's own transposed exchange would send the offsets, which both sides have, to each other.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sent(back: bool, rows_MD: jax.Array, exchange: Exchange) -> jax.Array:
    return exchange.move(rows_MD, back)


def _sent_forward(back: bool, rows_MD: jax.Array, exchange: Exchange):
    return exchange.move(rows_MD, back), exchange


def _sent_backward(back: bool, exchange: Exchange, dy_MD: jax.Array):
    return exchange.move(dy_MD, not back), None


_sent.defvjp(_sent_forward, _sent_backward)
