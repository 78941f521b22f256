"""The benchmark of the index of passages, at a size of a second."""

import json

import numpy as np
import pytest

from research.bench import vectors as bench
from research.retrieval import index as indices
from research.retrieval.index import predicted_bytes


def test_a_small_index_is_measured_as_the_large_one(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="the extra [apply] has it")
    monkeypatch.setattr(indices, "EXACT_UP_TO", 1000)
    real = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    bench.write(6000, tmp_path / "v", real, size=16)
    made = np.fromfile(tmp_path / "v", np.float32).reshape(6000, 16)
    np.testing.assert_array_equal(made[:500], real)  # those that are given stand in front
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    row = bench.measure(6000, tmp_path / "v", size=16)
    assert row["recall"] > 0.6 and row["predicted_bytes"] == predicted_bytes(6000, 16)
    assert 0 < row["p50_ms"] <= row["p95_ms"]
    text = bench.table(row)
    assert "6,000" in text and f"{row['recall']:.3f}" in text
    json.dumps(row)


def test_the_prediction_grows_with_the_vectors_and_not_below_the_exact_search():
    few, many = predicted_bytes(10_000, 384), predicted_bytes(1_000_000, 384)
    assert few < 30e6  # a block of vectors at a time
    # Codes of a byte a number, twice, and what finding 1,024 centres takes.
    assert 2 * 1_000_000 * 392 < many < 3 * 1_000_000 * 392
