"""Attention by blocks is the reference, forward and backward."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from research.models import embedding
from research.models.embedding import BUCKETS, relative_bias
from research.ops import chunked
from research.ops.attention import EVERYONE, Visibility, attend, reference
from research.ops.distance import DistanceBias
from tests.families import random_batch

B, T, N, K, H = 2, 20, 4, 2, 8  # T is no multiple of the blocks below


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 8)
    monkeypatch.setattr(chunked, "RANGES", 2)


def draw(*shape, seed: int = 0):
    return jax.random.normal(jax.random.key(seed), shape)


def packed(causal: bool = True, window: int = 0) -> Visibility:
    """Rows of two documents and padding."""
    batch = random_batch(B, T)
    positions_BT, segments_BT = jnp.asarray(batch["positions"]), jnp.asarray(batch["segments"])
    segments_BT = segments_BT.at[:, -3:].set(0)
    tokens = positions_BT, positions_BT, segments_BT, segments_BT
    return Visibility(*tokens, causal, window, packed=True)


def cross() -> Visibility:
    """Queries over the first 14 tokens of other rows."""
    here = packed(causal=False)
    keys = {name: getattr(here, name)[:, :14] for name in ("k_positions_BS", "k_segments_BS")}
    return replace(here, **keys, packed=False)


def prefixed() -> Visibility:
    """The first four keys are seen by all."""
    here = packed()
    segments_BS = here.k_segments_BS.at[:, :4].set(EVERYONE)
    return replace(here, k_segments_BS=segments_BS, packed=False, shared=True)


CASES = {
    "causal": (packed(), None, 0.0),
    "window": (packed(window=5), None, 0.0),
    "window longer than the row": (packed(window=99), None, 0.0),
    "both sides": (packed(causal=False), None, 0.0),
    "soft cap": (packed(), None, 3.0),
    "prefix": (prefixed(), None, 0.0),
    "cross": (cross(), None, 0.0),
    "bias by distance": (packed(), DistanceBias(draw(N, 2 * T - 1), T), 0.0),
    "bias by distance, both sides": (packed(False), DistanceBias(draw(N, 2 * T - 1), T), 0.0),
    "bias by pair": (prefixed(), draw(B, N, T, T), 0.0),
}


FEW = ("window", "cross", "bias by distance", "bias by pair")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_blocks_have_the_output_and_the_gradients_of_the_reference(name):
    visibility, bias, softcap = CASES[name]
    S = visibility.k_positions_BS.shape[1]
    operands = draw(B, T, N, H), draw(B, S, K, H, seed=1), draw(B, S, K, H, seed=2), bias
    read_BT11 = (visibility.q_segments_BT > 0)[:, :, None, None]  # padding's rows are never read

    def whole(q, k, v, bias):
        dense = bias.dense() if isinstance(bias, DistanceBias) else bias
        return reference(q, k, v, visibility, 0.3, dense, softcap)

    def by_blocks(q, k, v, bias):
        return chunked.attend(reference, q, k, v, visibility, 0.3, bias, softcap)

    @partial(jax.jit, static_argnums=0)
    def with_gradients(attention, *operands):
        out, pull = jax.vjp(lambda *x: jnp.where(read_BT11, attention(*x), 0), *operands)
        return out, pull(draw(B, T, N, H, seed=3))

    # Float32 sums of up to 20 terms in another order.
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, with_gradients(by_blocks, *operands), with_gradients(whole, *operands))


@pytest.mark.parametrize("mesh", ["fsdp:2,tensor:2,data:2"], indirect=True)
@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_mesh_changes_nothing(monkeypatch, mesh, causal):
    """Through `attend` on an accelerator, whose rows are long from 1 pair on."""
    visibility, bias = packed(causal), DistanceBias(draw(N, 2 * T - 1), T)
    operands = draw(B, T, N, H), draw(B, T, N, H, seed=1), draw(B, T, N, H, seed=2), bias.values_NW
    wanted = reference(*operands[:3], visibility, 0.3, bias.dense())
    monkeypatch.setattr(chunked, "platform", lambda: "gpu")
    monkeypatch.setattr(chunked, "SHORT", 1)
    heads = PartitionSpec(("data",), None, "tensor", None)
    placed = [jax.reshard(x, heads) for x in operands[:3]]
    placed.append(jax.reshard(operands[3], PartitionSpec("tensor", None)))
    rows = jax.tree.map(lambda x: jax.reshard(x, PartitionSpec("data", None)), visibility)

    @jax.jit
    def by_blocks(q, k, v, values):
        bias = DistanceBias(values, T)
        return attend(q, k, v, rows, scale=0.3, bias=bias, implementation="xla")

    found = by_blocks(*placed)
    assert jax.typeof(found).sharding.spec == heads
    read = np.asarray(visibility.q_segments_BT) > 0
    np.testing.assert_allclose(np.asarray(found)[read], np.asarray(wanted)[read], atol=2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_offsets_by_distance_are_those_by_position(monkeypatch, causal):
    positions_1T = jnp.arange(T)[None]
    p = {"table": draw(BUCKETS, N)}
    by_pair = relative_bias(p, positions_1T, positions_1T, causal=causal)
    monkeypatch.setattr(embedding, "platform", lambda: "tpu")
    by_distance = relative_bias(p, positions_1T, positions_1T, causal=causal, adjacent=True)
    np.testing.assert_array_equal(by_distance, by_pair)


def test_no_mask_of_a_row_is_kept_for_all_layers():
    visibility, k_BTKH = packed(causal=False), draw(B, T, K, H)

    def layers(q_BTNH):
        """Three layers whose masks are the same."""

        def layer(q_BTNH, _):
            return chunked.attend(
                reference, q_BTNH, k_BTKH, k_BTKH, visibility, 0.3, None, 0.0
            ), None

        return jnp.sum(jax.lax.scan(layer, q_BTNH, length=3)[0])

    traced = str(jax.make_jaxpr(jax.grad(layers))(draw(B, T, N, H)))
    assert f"bool[{B},{K},{N // K},8,{T}]" in traced and not re.search(
        rf"bool\[3,.*8,{T}\]", traced
    )
