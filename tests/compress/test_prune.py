"""Pruning of matrices: exact counts, the papers' order on a layer with outlier inputs, and GPTQ as
its case without zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.compress.gptq import DAMPING, gptq, sparse_gpt
from research.compress.masks import Pruning
from research.compress.observe import Inputs, inputs_of
from research.compress.prune import PRUNERS, prune_matrix
from research.weights.sparse import check_pattern

HALF, TWO_OF_FOUR = Pruning(0.5), Pruning(pattern=(2, 4))


def layer(inputs=128, outputs=64, seed=0):
    """Inputs x [512, I], correlated, a tenth of them ten times as large as the rest; W [I, O]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(512, inputs // 2)) @ rng.normal(size=(inputs // 2, inputs)) / inputs**0.5
    x += 0.5 * rng.normal(size=x.shape)
    x[:, rng.permutation(inputs)[: inputs // 10]] *= 10
    w = rng.normal(size=(inputs, outputs))
    return jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)


def pruned(method, pruning, x, w, **settings):
    seen = inputs_of("MI,IO->MO", x)
    return prune_matrix(w, method, pruning, inputs=1, seen=seen, **settings)


def error(x, w, other):
    return float(jnp.linalg.norm(x @ (other - w)) / jnp.linalg.norm(x @ w))


@pytest.mark.parametrize("pruning", [HALF, TWO_OF_FOUR], ids=["half", "2:4"])
def test_the_papers_order_on_a_layer_with_outlier_inputs(pruning):
    x, w = layer()
    errors = {name: error(x, w, pruned(name, pruning, x, w)) for name in PRUNERS}
    assert errors["magnitude"] > 2 * errors["wanda"]  # it prunes outliers' weights as any other
    assert errors["magnitude"] > errors["ria"]
    assert errors["wanda"] > 1.1 * errors["sparsegpt"]


@pytest.mark.parametrize("method", PRUNERS)
def test_as_many_weights_are_zero_as_was_asked_for(method, share=0.3):
    x, w = layer(outputs=24)
    got = pruned(method, Pruning(share), x, w)
    zeros = np.count_nonzero(np.asarray(got) == 0, axis=0)
    if method == "wanda":  # of each output
        np.testing.assert_array_equal(zeros, round(share * 128))
    assert zeros.sum() == pytest.approx(share * w.size, abs=0.5 * 24)
    if method != "sparsegpt":
        np.testing.assert_array_equal(got[got != 0], w[got != 0])


@pytest.mark.parametrize("method", PRUNERS)
def test_two_of_four_neighbouring_inputs_stay(method):
    x, w = layer(outputs=24)
    got = pruned(method, TWO_OF_FOUR, x, w)
    groups = np.asarray(got).reshape(32, 4, 24)
    np.testing.assert_array_equal(np.count_nonzero(groups, axis=1), 2)
    check_pattern("w", got, (2, 4))
    with pytest.raises(ValueError, match="w has 2 of 4 neighbouring inputs .* wanted 1:4"):
        check_pattern("w", got, (1, 4))


def test_wanda_is_magnitude_of_each_output_where_inputs_are_equally_large():
    w = jax.random.normal(jax.random.key(0), (32, 8))
    alike = Inputs(jnp.float32(1), jnp.ones(32), jnp.ones(32), 3 * jnp.eye(32))
    got = prune_matrix(w, "wanda", HALF, inputs=1, seen=alike)
    least = np.argsort(np.abs(np.asarray(w)), axis=0)[:16]
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(got), least, 0), 0)


@pytest.mark.parametrize(("format", "pattern"), [("int4", None), ("nf4", "blocks")])
def test_pruning_nothing_is_gptq_to_the_bit(format, pattern):
    x, w = layer()
    seen = inputs_of("MI,IO->MO", x)
    order = pattern is None
    want = gptq(w, seen.gram_II, format, inputs=1, group=32, by_activation=order)
    if order:
        got = pruned("sparsegpt", Pruning(0.0, format=format), x, w, group=32)
    else:  # in the order of the inputs, as with a share
        settings = {"inputs": 1, "group": 32, "by_activation": False}
        got = gptq(w, seen.gram_II, format, **settings, pruning=Pruning(0.0))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def optimal_brain(w_IO, gram, pruning, scale_IO=None):
    """The same recursion in float64, without blocks or factors: settle input i, move the others by
    H^-1, take i out of it. One block holds all inputs, so the mask is chosen at the start, or when
    a group begins."""
    w, h = np.asarray(w_IO, np.float64).copy(), np.asarray(gram, np.float64)
    damped = h + DAMPING * np.mean(np.diag(h)) * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    cost, kept, of = (w / np.diag(upper)[:, None]) ** 2, np.ones(w.shape, bool), len(w)
    if pruning.pattern is None:
        kept.reshape(-1)[np.argsort(cost.reshape(-1))[: round(pruning.share * w.size)]] = False
    else:
        of = pruning.pattern[1]
    out = np.zeros_like(w)
    for i in range(len(w)):
        if pruning.pattern and i % of == 0:
            cost = (w[i : i + of] / np.diag(upper)[i : i + of, None]) ** 2
            kept[i : i + of] = np.argsort(np.argsort(cost, axis=0), axis=0) >= of // 2
        out[i] = np.where(kept[i], w[i], 0)
        if scale_IO is not None:
            out[i] = np.clip(np.rint(out[i] / scale_IO[i]), -7, 7) * scale_IO[i]
        w[i:] -= upper[i, i:, None] * ((w[i] - out[i]) / upper[i, i])[None]
    return out


@pytest.mark.parametrize("pruning", [HALF, TWO_OF_FOUR], ids=["half", "2:4"])
def test_sparse_gpt_is_its_recursion(pruning):
    x, w = layer()
    gram = inputs_of("MI,IO->MO", x).gram_II
    # Float32 sums of 128 terms of size 1.
    got, want = sparse_gpt(w, gram, pruning, inputs=1), optimal_brain(w, gram, pruning)
    same = (np.asarray(got) == 0) == (want == 0)
    assert same.mean() > 0.998  # two costs may be nearer than float32 tells apart
    np.testing.assert_allclose(np.asarray(got)[same], want[same], atol=5e-2)
    assert np.median(np.abs(np.asarray(got) - want)) < 1e-5


def test_pruned_and_rounded_in_one_pass_is_the_recursion_of_both():
    x, w = layer()
    seen = inputs_of("MI,IO->MO", x)
    got = pruned("sparsegpt", Pruning(pattern=(2, 4), format="int4"), x, w, group=32)
    scale_IO = np.repeat(np.asarray(got.scale, np.float64)[:, 0], 32, axis=0)
    want = optimal_brain(w, seen.gram_II, TWO_OF_FOUR, scale_IO)
    # Sums of float32 may round a value across the middle between two codes, as in GPTQ's test.
    assert (np.abs(np.asarray(got.dense()) - want) < 1e-5).mean() > 0.97
    check_pattern("w", got.dense(), (2, 4))


def test_in_very_many_bits_it_is_pruning_alone():
    x, w = layer()
    rounded = pruned("sparsegpt", Pruning(0.5, format="int8"), x, w).dense()
    alone = pruned("sparsegpt", HALF, x, w)
    # 8 bits with one scale an output: half a step of a 127th of the largest weight, about 3.
    assert error(x, alone, rounded) < 0.02


def test_what_cannot_be_asked_of_a_matrix_is_refused():
    with pytest.raises(ValueError, match="a sparsity of 1.0 leaves nothing"):
        Pruning(1.0)
    with pytest.raises(ValueError, match="4:4 keeps that many of a group; take N:M"):
        Pruning(pattern=(4, 4))
    with pytest.raises(ValueError, match="mlp/up: a sparsity of 0.9 leaves nothing of its 4"):
        Pruning(0.9).check("mlp/up", 4)
    with pytest.raises(ValueError, match="mlp/up has 30 inputs, which groups of 4 do not divide"):
        TWO_OF_FOUR.check("mlp/up", 30)
    x, w = layer()
    with pytest.raises(ValueError, match="uint4 has no code for an exact zero"):
        pruned("sparsegpt", Pruning(0.5, format="uint4"), x, w)
