"""Seconds of a training step, forward, backward and AdamW, of Graft and of Hugging Face transformers on torch."""

import importlib.util
from typing import Any

from research.bench.shapes import BATCH, LENGTH, PRODUCT_SIDE, SHAPES
from research.bench.turns import take_turns
from research.training.flops import train_flops_per_token

OURS, EAGER, COMPILED = "graft", "transformers", "transformers_compiled"


def compare(shapes: list[str], dtypes: list[str], rounds: int, peers: bool) -> list[dict[str, Any]]:
    """One row a contender, shape and dtype: seconds, tokens_per_second, ratio (of speed, to the peer under
    torch.compile), peak_bytes, gflops and share (of the best matrix product measured in the same run)."""
    for name, known in [(s, SHAPES) for s in shapes] + [(d, ("float32", "bfloat16")) for d in dtypes]:
        if name not in known:
            raise ValueError(f"{name!r} is unknown; choose from {', '.join(known)}")
    if peers and not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise ValueError("the peers need torch and transformers; pip install '.[parity]', or pass --nopeers")
    return [row for shape in shapes for dtype in dtypes for row in _rows(shape, dtype, rounds, peers)]


def _rows(shape: str, dtype: str, rounds: int, peers: bool) -> list[dict[str, Any]]:
    contenders = [OURS, EAGER, COMPILED] if peers else [OURS]
    products = [f"product:{dtype}:{library}" for library in (["jax", "torch"] if peers else ["jax"])]
    names = [f"{shape}:{dtype}:{name}" for name in contenders]
    results = take_turns("research.bench.contender", names + products, rounds)
    best = max(2 * PRODUCT_SIDE**3 / results[name]["seconds"] for name in products)
    flops = BATCH * LENGTH * train_flops_per_token(SHAPES[shape], LENGTH)
    rows = []
    for contender, name in zip(contenders, names):
        result = results[name]
        speeds = {"tokens_per_second": BATCH * LENGTH / result["seconds"], "gflops": flops / result["seconds"] / 1e9}
        row = {"shape": shape, "dtype": dtype, "contender": contender, **result, **speeds}
        row["share"] = flops / result["seconds"] / best
        row["ratio"] = results[names[-1]]["seconds"] / result["seconds"] if peers else None
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines for a person."""
    lines = [f"{'shape':6} {'dtype':9} {'contender':22} {'s/step':>7} {'tokens/s':>9} {'ratio':>6} {'of GEMM':>8} {'peak MB':>8}"]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"{row['shape']:6} {row['dtype']:9} {row['contender']:22} {row['seconds']:7.3f} "
            f"{row['tokens_per_second']:9.0f} {ratio:>6} {row['share']:8.0%} {row['peak_bytes'] / 1e6:8.0f}"
        )
    lines.append("ratio: tokens per second over those of transformers under torch.compile, in the same run")
    return "\n".join(lines)
