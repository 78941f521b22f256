"""Values of the host that the processes of a job give each other."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def exchange(value: Any) -> list[Any]:
    """The JSON value of each process of the job, in their order, in all of them; floats keep their
    bits. All processes call it together; without others it is [value].

        exchange(jax.process_index()) == [0, 1]  # in either of two processes
    """
    if jax.process_count() == 1:
        return [value]
    # Bytes, since arrays go through devices, which have no float64.
    given = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(given)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(given)] = given
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(np.asarray(rows), sizes)]
