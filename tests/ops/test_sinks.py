"""Sinks: a further score a head, whatever computes the attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from research.ops import blocked, chunked
from research.ops.attention import Visibility, attend, reference
from research.ops.kernels import splash
from tests.ops.test_attention import normals, packed_rows

B, T, N, K, H = 2, 128, 4, 2, 8


def formula(q, k, v, visibility, scale, sinks_N):
    """The scores with one more column, which is cut off again behind the softmax."""
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * scale
    scores = jnp.where(visibility.mask_BTS()[:, None], scores, -1e30)
    column = jnp.broadcast_to(sinks_N[None, :, None, None], (*scores.shape[:3], 1))
    probs = jax.nn.softmax(jnp.concatenate([scores, column], axis=-1), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", probs[..., :-1], v)


def by_chunks(q, k, v, visibility, scale, sinks_N):
    return chunked.attend(reference, q, k, v, visibility, scale, None, 0.0, sinks_N)


RUN = {
    "reference": reference,
    "blocked": blocked.attend,
    "chunked": by_chunks,
    "splash": partial(splash.attend, interpret=True),
}


def the_case(window=0):
    segments, positions = packed_rows(B, T)
    seen = Visibility(positions, positions, segments, segments, True, window, packed=True)
    # From a head that looks at its keys alone to one that hardly does.
    sinks_N = jnp.array([-30.0, -0.5, 1.0, 5.0])
    return *normals(3, (B, T, N, H), (B, T, K, H), (B, T, K, H)), sinks_N, seen


def value_and_gradients(run, q, k, v, sinks_N, seen):
    (cotangent,) = normals(7, q.shape)
    real = seen.q_segments_BT[:, :, None, None] > 0

    def loss(q, k, v, sinks_N, seen):
        out = jnp.where(real, run(q, k, v, seen, 0.3, sinks_N=sinks_N), 0)
        return jnp.sum(out * cotangent), out

    gradients = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
    (_, out), found = jax.jit(gradients)(q, k, v, sinks_N, seen)
    return out, *found


# Sums of up to 128 products of order 1 in another order, in float32; of a sink over all queries.
close = partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("window", [0, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RUN)
def test_output_and_gradients_are_the_formulas(name, window, monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 32)
    case = the_case(window)
    for got, want in zip(
        value_and_gradients(RUN[name], *case), value_and_gradients(formula, *case)
    ):
        close(got, want)


@pytest.mark.parametrize("mesh", ["data:2,fsdp:2,tensor:2"], indirect=True)
def test_a_mesh_changes_nothing(mesh):
    *operands, seen = the_case()
    want = value_and_gradients(formula, *operands, seen)
    heads = PartitionSpec("data", None, "tensor", None)
    placed = [jax.reshard(x, heads) for x in operands[:3]]
    placed += [jax.reshard(operands[3], PartitionSpec("tensor"))]
    rows = jax.tree.map(lambda x: jax.reshard(jnp.asarray(x), PartitionSpec("data", None)), seen)
    for got, right in zip(value_and_gradients(attend_in_xla, *placed, rows), want):
        close(got, right)


def attend_in_xla(q, k, v, visibility, scale, sinks_N):
    return attend(q, k, v, visibility, scale=scale, sinks_N=sinks_N, implementation="xla")


def test_a_query_that_sees_no_key_looks_at_nothing():
    q, k, v, sinks_N, seen = the_case()
    nobody = Visibility(
        seen.q_positions_BT,
        seen.k_positions_BS,
        0 * seen.q_segments_BT + 9,
        seen.k_segments_BS,
        True,
    )
    np.testing.assert_array_equal(reference(q, k, v, nobody, 0.3, sinks_N=sinks_N), 0.0)
