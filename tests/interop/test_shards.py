"""Arrays filled slice by slice: whatever order the values are in, and without a second copy."""

import jax
import numpy as np
import pytest

from research.interop.storage import shards
from research.interop.storage.shards import Shards


@pytest.mark.parametrize("device", [True, False], ids=["by XLA", "by numpy"])
@pytest.mark.parametrize("block", [1, 2**20], ids=["row by row", "in one"])
@pytest.mark.parametrize("shape", [(37, 5), (1, 17), (33, 4, 19), (3, 1), (7,), ()])
def test_slices_of_any_order_arrive_as_they_are(shape, block, device, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK_BYTES", block)
    if not device:
        monkeypatch.setattr(shards, "_transposer", lambda: None)
    made = Shards(jax.ShapeDtypeStruct((2, *shape), np.float32))
    values = np.random.default_rng(0).normal(size=(2, *shape[::-1])).astype(np.float32)
    for n in range(2):
        made.put((n,), values[n].T)
    np.testing.assert_array_equal(made.array(), [one.T for one in values])


def test_an_array_on_a_cpu_is_the_memory_that_was_filled():
    """A stack of layers is a large part of a model: copied, it would be there twice."""
    made = Shards(jax.ShapeDtypeStruct((3, 50), np.float32))
    (buffer,) = made._buffers.values()
    assert made.array().unsafe_buffer_pointer() == buffer.ctypes.data


def test_what_a_step_overwrites_is_not_the_memory_of_numpy():
    made = Shards(jax.ShapeDtypeStruct((64,), np.float32))
    made.put((), np.ones(64, np.float32))
    (buffer,) = made._buffers.values()
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    np.testing.assert_array_equal(step(made.array()), np.full(64, 2))
    np.testing.assert_array_equal(buffer, np.ones(64))
