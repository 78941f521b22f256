"""Tokens sent to the devices of their experts and back give what gathered tokens give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from research.ops import exchange, route
from research.parallel.mesh import make_mesh

E, D, F = 8, 16, 8


def ragged_all_to_all(operand, output, first, sizes, there, arriving, *, axis_name):
    """`lax.ragged_all_to_all`, which a CPU does not have, after its definition."""
    me, count = lax.axis_index(axis_name), first.shape[0] // lax.axis_size(axis_name)
    # Slices for this device: [devices, count] in one row.
    operands, *slices = (lax.all_gather(a, axis_name) for a in (operand, first, sizes, there))
    start, length, place = (
        lax.dynamic_slice_in_dim(a, me * count, count, 1).reshape(1, -1) for a in slices
    )
    row = jnp.arange(output.shape[0])[:, None]
    inside = (row >= place) & (row < place + length)
    which = jnp.argmax(inside, axis=1)
    moved = operands[which // count, (row + start - place)[row[:, 0], which]]
    moved = jnp.where(jnp.any(inside, axis=1)[:, None], moved, output)
    # The receiver must know what it gets.
    return jnp.where(jnp.all(length[0] == arriving), moved, jnp.nan)


@pytest.fixture
def exchanging(monkeypatch):
    monkeypatch.setattr(exchange.lax, "ragged_all_to_all", ragged_all_to_all)
    monkeypatch.setattr(route, "_exchanges", lambda k, devices: devices > 1)


def random(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


# Logits as drawn; and all tokens at the experts of one device, none at those of others.
LOGITS = {"spread": random(8, 4, E), "crowded": random(8, 4, E).at[..., :2].add(30.0)}


def swiglu(gate, up):
    return jax.nn.silu(gate) * up


def loss(x, weights, ids, *matrices):
    layer = jax.checkpoint(lambda *a: route.experts(*a, swiglu))
    return jnp.sum(layer(x, weights, ids, *matrices) ** 2)


gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 3, 4, 5)))
CASES = [("expert:4", "spread"), ("expert:4", "crowded"), ("fsdp:2,expert:2,tensor:2", "spread")]


@pytest.mark.parametrize(("mesh", "logits"), CASES)
def test_exchanged_tokens_give_what_gathered_ones_do(exchanging, mesh, logits):
    weights, ids = route.top_k(LOGITS[logits], 2)
    arrays = random(8, 4, D), weights, ids, random(E, D, F), random(E, D, F) / 2, random(E, F, D)
    want = jax.device_get(gradients(*arrays))
    made = make_mesh(mesh, jax.devices()[: 4 if mesh == "expert:4" else 8])
    axes = [name for name in ("fsdp", "expert") if made.shape[name] > 1]
    tensor = "tensor" if made.shape["tensor"] > 1 else None
    fsdp = "fsdp" if made.shape["fsdp"] > 1 else None
    up, down = P("expert", fsdp, tensor), P("expert", tensor, fsdp)
    with jax.set_mesh(made):
        placed = [
            jax.device_put(a, jax.NamedSharding(made, at))
            for a, at in zip(arrays, (P(tuple(axes)),) * 3 + (up, up, down))
        ]
        got = jax.device_get(gradients(*placed))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        # float32 sums of 16 to 64 terms in another order
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


def test_only_what_moves_less_is_exchanged(monkeypatch):
    assert not route._exchanges(2, 8)  # on a CPU
    monkeypatch.setattr(route, "platform", lambda: "tpu")
    assert route._exchanges(2, 8) and not route._exchanges(2, 2) and not route._exchanges(2, 1)
