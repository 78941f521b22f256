"""A fit as its JSON, for tests that need one and not a compiler."""

import copy
from typing import Any

from research.fit.report import Fit

GIB = 2**30
_FIT = {
    "target": "v5p:4x4x4",
    "device_bytes": {
        "params": GIB,
        "frozen": 0,
        "optimizer": 2 * GIB,
        "gradients": GIB,
        "temporaries": 6 * GIB,
        "capacity": 95 * GIB,
    },
    "host_bytes": 0,
    "flops": {"model": 3.0e16, "hardware": 4.0e16},
    "recompute_ratio": 1.33,
    "collective_bytes": {"all-gather": GIB, "reduce-scatter": 20 * GIB},
    "roofline": {"compute": 1.25, "memory": 0.3, "network": 0.8},
    "step": "train",
    "mesh": {"data": 1, "fsdp": 16, "expert": 1, "context": 1, "tensor": 4},
    "tokens": 524288,
    "least_collective_bytes": 20 * GIB,
    "memory_bytes": 500 * GIB,
    "peak_flops": 2.9376e16,
    "chips": 64,
    "price_per_hour": None,
    "notes": [],
    "kernels": [],
    "compile_seconds": {},
}


def fit_json(**changes: Any) -> dict[str, Any]:
    """A fit with these entries in place of its own; those of `device_bytes` may be given by their
    own names."""
    made = copy.deepcopy(_FIT)
    for name, value in changes.items():
        (made["device_bytes"] if name in made["device_bytes"] else made)[name] = value
    return Fit.from_json(made).to_json()
