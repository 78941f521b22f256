"""The balance of experts: its value, what padding does to it, and what cutting a batch does."""

import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.route import load_balance, top_k

E, K = 4, 2


def _balance(logits_BTE: np.ndarray, counted_BT: np.ndarray) -> float:
    """arXiv:2101.03961, eq. 4, in float64 and token by token."""
    shares_E, probs_E, count = np.zeros(E), np.zeros(E), 0
    for logits_E, counted in zip(logits_BTE.reshape(-1, E), counted_BT.reshape(-1)):
        if counted:
            probs_E += np.exp(logits_E) / np.exp(logits_E).sum()
            shares_E[np.argsort(-logits_E)[:K]] += 1 / K
            count += 1
    return E * float((shares_E / count) @ (probs_E / count))


@pytest.mark.parametrize("counted", ["all", "padded rows of unequal length"])
def test_balance_is_the_papers(counted):
    rng = np.random.default_rng(0)
    logits_BTE = rng.normal(size=(3, 8, E)) + [1.0, 0, 0, -1.0]  # far from uniform
    ends = [8, 8, 8] if counted == "all" else [8, 3, 1]
    counted_BT = (np.arange(8) < np.array(ends)[:, None]).astype(np.float32)
    logits = jnp.asarray(logits_BTE, jnp.float32)
    got = load_balance(logits, top_k(logits, K)[1], jnp.asarray(counted_BT))
    np.testing.assert_allclose(got, _balance(logits_BTE, counted_BT), rtol=1e-5)
    assert got > 1.05  # 1 is uniform


def test_balance_of_a_batch_is_not_the_mean_of_its_parts():
    # What README and `load_balance` say of accumulation: here the parts use other experts each, so
    # the whole is balanced and no part is.
    logits_BTE = np.zeros((2, 8, E))
    logits_BTE[0, :, :2], logits_BTE[1, :, 2:] = 4.0, 4.0
    logits = jnp.asarray(logits_BTE, jnp.float32)
    ids, counted = top_k(logits, K)[1], jnp.ones((2, 8))
    whole = load_balance(logits, ids, counted)
    halves = [load_balance(logits[n : n + 1], ids[n : n + 1], counted[n : n + 1]) for n in (0, 1)]
    np.testing.assert_allclose(whole, 1, atol=1e-6)
    assert all(1.9 < half < 2 for half in halves)
