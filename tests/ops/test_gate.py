"""Which experts a token visits, against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.gate import Gate
from research.ops.route import top_k

LOGITS = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
BIAS = np.random.default_rng(1).normal(size=12).astype(np.float32)


def by_hand(logits, gate, bias):
    """Weights by expert of one token: arXiv:2405.04434, section 2.2.2, and arXiv:2412.19437,
    equations 13 to 16."""
    sigmoid = gate.scores == "sigmoid"
    shares = 1 / (1 + np.exp(-logits)) if sigmoid else np.exp(logits) / np.exp(logits).sum()
    order = shares + bias if sigmoid else shares
    groups = np.split(np.arange(len(logits)), gate.groups)
    worth = [np.sort(order[group])[-(2 if sigmoid else 1) :].sum() for group in groups]
    visited = np.argsort(worth)[-gate.visited :]
    allowed = np.concatenate([groups[n] for n in visited])
    chosen = allowed[np.argsort(order[allowed])[-gate.k :]]
    weights = shares[chosen] / (shares[chosen].sum() if gate.normalized else 1.0)
    return dict(zip(chosen.tolist(), gate.scale * weights))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_experts_and_weights_are_those_of_the_papers(scores, normalized, groups):
    gate = Gate(3, normalized, scores, groups, min(2, groups), 2.5)
    weights_BTk, ids_BTk = gate.choose(LOGITS, BIAS if scores == "sigmoid" else None)
    for index in np.ndindex(2, 5):
        got = dict(zip(np.asarray(ids_BTk[index]).tolist(), np.asarray(weights_BTk[index])))
        want = by_hand(LOGITS[index].astype(np.float64), gate, BIAS)
        assert got.keys() == want.keys()
        # Shares of float32 logits.
        assert all(abs(got[n] - want[n]) < 1e-6 for n in want)


def test_without_groups_a_softmax_is_the_routing_that_other_mixtures_have():
    for normalized in (True, False):
        got, want = Gate(3, normalized).choose(LOGITS), top_k(LOGITS, 3, normalized)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_no_gradient_reaches_the_bias():
    def weigh(bias_E):
        return jnp.sum(
            Gate(3, scores="sigmoid", groups=4, visited=2).choose(LOGITS, bias_E)[0] ** 2
        )

    np.testing.assert_array_equal(jax.grad(weigh)(BIAS), np.zeros(12, np.float32))


@pytest.mark.parametrize("jitter", [0.01, 0.3])
def test_sparsemixer_weighs_the_best_among_those_within_reach(jitter):
    logits_BTE = LOGITS.copy()
    logits_BTE[0, 0] = -np.abs(logits_BTE[0, 0])  # a best logit of which less is larger in size
    logits_BTE[0, 1, np.argmax(logits_BTE[0, 1])] = 0
    logits_BTE[0, 1] -= np.abs(logits_BTE[0, 1])  # the best is 0
    weights_BTk, ids_BTk = Gate(2, scores="sparsemixer", jitter=jitter).choose(logits_BTE)
    for index in np.ndindex(2, 5):
        logits, left = logits_BTE[index], set(range(12))
        for weight, best in zip(weights_BTk[index], np.asarray(ids_BTk[index]).tolist()):
            assert best == max(left, key=lambda n: logits[n])
            sizes = {n: max(abs(logits[n]), logits[best]) for n in left}
            near = [n for n in left if logits[best] - logits[n] <= 2 * jitter * sizes[n]]
            share = 1 / np.exp(logits[near].astype(np.float64) - logits[best]).sum()
            assert abs(weight - share) < 1e-6  # float32 logits
            left.remove(best)
