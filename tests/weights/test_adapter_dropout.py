"""Dropout of adapters draws a mask of its own for every matrix, layer, step, piece and device."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from research.models.config import Execution
from research.objectives import tokens
from research.ops.einsum import einsum
from research.ops.grouped import grouped
from research.weights.lora import Lora, LoraAdapter
from research.weights.rules import attach

D, RATE = 64, 0.5


def revealing(*stack, table=False, experts=0):
    """(weight of zeros, adapter) whose product is x itself with its dropout."""
    one = jnp.eye(D)
    shape = (*stack, *([experts] if experts else []))
    a, b = (jnp.broadcast_to(one, (*shape, D, D)) for _ in range(2))
    return 0 * a, LoraAdapter(a, b, jnp.ones(shape), table=table, dropout=RATE)


def different(masks):
    """Masks of ones and zeros are independent: about half of their numbers agree."""
    for one, other in combinations(masks, 2):
        # Of at least 256 coin tosses 30% to 70% agree, but for 1 of 10^9 draws.
        assert 0.3 < np.mean((one > 0) == (other > 0)) < 0.7


def test_matrices_layers_and_steps_have_masks_of_their_own():
    weights = {name: revealing(2)[0] for name in ("query", "key", "value")}
    adapters = {name: revealing(2)[1] for name in weights}
    masks = []
    for step in range(2):
        key = jax.random.fold_in(jax.random.key(0), step)
        for leaf in attach(weights, adapters, key).values():
            for layer in range(2):
                one = jax.tree.map(lambda x, layer=layer: x[layer], leaf)
                masks.append(np.asarray(one.einsum("BD,DF->BF", jnp.ones((4, D)))))
    assert set(np.unique(masks)) == {0.0, 2.0}  # dropped, or divided by the kept half
    different(masks)


def test_experts_drop_inputs_and_devices_draw_other_masks():
    w, adapter = revealing(experts=2)
    leaf = attach({"up": w}, {"up": adapter}, jax.random.key(0))["up"]
    rows, sizes = jnp.ones((8, D)), jnp.array([3, 5])
    whole = np.asarray(leaf.grouped(rows, sizes))
    assert set(np.unique(whole)) == {0.0, 2.0} and 0.4 < np.mean(whole > 0) < 0.6
    different(whole.reshape(2, 4, D))
    np.testing.assert_array_equal(Lora(w, adapter).grouped(rows, sizes), rows)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = jax.shard_map(
            lambda x, leaf: grouped(x, leaf, sizes // 2 + sizes % 2 * jnp.array([0, 1])),
            in_specs=(P("data"), P()),
            out_specs=P("data"),
            check_vma=False,
        )(jax.device_put(rows, P("data")), leaf)
    different(np.asarray(split).reshape(2, 4, D))


def test_pieces_of_a_head_have_masks_of_their_own():
    w, adapter = revealing(table=True)
    params = attach({"head": {"table": w}}, {"head": {"table": adapter}}, jax.random.key(0))

    class Head:
        execution = Execution(head_tokens=8)

        def logits(self, params, hidden_BTD):
            return einsum("BTD,VD->BTV", hidden_BTD, params["head"]["table"])

    # Two pieces of equal tokens: with one mask their losses would be equal too.
    piece = jax.random.normal(jax.random.key(1), (1, 8, D))
    once = piece, jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8))
    alone, _ = tokens._logits_loss(Head(), params, once, 0.0, 0.0)
    twice = tuple(jnp.concatenate([x, x], axis=1) for x in once)
    total, _ = tokens._logits_loss(Head(), params, twice, 0.0, 0.0)
    assert abs(float(total) - 2 * float(alone)) > 0.1
