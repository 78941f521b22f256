"""Writes mergekit.json: what mergekit (LGPL, an oracle and no dependency) makes of fixed tensors.

python tests/merging/make_golden.py    # where mergekit and torch are installed
"""

import json
from pathlib import Path

import numpy as np


def inputs() -> tuple[np.ndarray, list[np.ndarray]]:
    """(base [4, 6], three models [4, 6]); the third differs in half of its values."""
    rng = np.random.default_rng(20261128)
    base = rng.standard_normal((4, 6)).astype(np.float32)
    models = [base + 0.3 * rng.standard_normal((4, 6)).astype(np.float32) for _ in range(3)]
    models[2] = np.where(rng.random((4, 6)) < 0.5, base, models[2])
    return base, models


CASES = {
    "task_arithmetic": {"weights": [0.5, 0.25, 1.0], "scale": 0.8},
    "ties": {"weights": [1.0, 0.5, 0.7], "scale": 1.0, "density": 0.4},
    "ties_scaled": {"weights": [1.0, 1.0, 1.0], "scale": 0.3, "density": 0.2},
}


def main() -> None:
    import torch
    from mergekit.merge_methods.generalized_task_arithmetic import get_mask
    from mergekit.merge_methods.slerp import slerp
    from mergekit.sparsify import magnitude

    base, models = inputs()
    base_t, models_t = torch.tensor(base), [torch.tensor(x) for x in models]
    golden = {"slerp": slerp(torch.tensor([0.3]), base_t[None], models_t[0][None])[0].tolist()}
    for name, case in CASES.items():
        deltas = torch.stack([x - base_t for x in models_t])
        weights = torch.tensor(case["weights"])[:, None, None]
        if name.startswith("ties"):
            deltas = torch.stack([magnitude(x, case["density"]) for x in deltas]) * weights
            mask = get_mask(deltas)
            divisor = (weights * mask).sum(0)
            divisor[divisor == 0] = 1
            mixed = (deltas * mask).sum(0) / divisor
        else:
            mixed = (deltas * weights).sum(0)
        golden[name] = (base_t + case["scale"] * mixed).tolist()
    Path(__file__).with_name("mergekit.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
