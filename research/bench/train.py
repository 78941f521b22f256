"""Seconds of a training step, forward, backward and AdamW, of Graft and of its peers."""

import importlib.util
from pathlib import Path
from typing import Any

from research.bench.shapes import BATCH, LENGTH, PRODUCT_SIDE, SHAPES
from research.bench.turns import take_turns
from research.training.flops import train_flops_per_token

DTYPES = ("float32", "bfloat16")
OURS, REFERENCE = "graft", "transformers_compiled"
IN_FLOAT32 = "graft_in_float32"  # ours again beside a bfloat16 run, to say what bfloat16 gains
CHECKOUTS = {
    "nanogpt": "model.py",
    "nanodo": "nanodo/model.py",
}  # peers of the shape gpt2, and a file of each


def compare(
    shapes: list[str], dtypes: list[str], rounds: int, transformers: bool, checkouts: dict[str, str]
) -> list[dict[str, Any]]:
    """One row a contender, shape and dtype, as `rows` makes them. Those of one shape and dtype take
    turns.

    `checkouts` has the folders of peers that are timed on the shape gpt2. ValueError for what is
    unknown or missing.
    """
    for name, choices in [(s, SHAPES) for s in shapes] + [(d, DTYPES) for d in dtypes]:
        if name not in choices:
            raise ValueError(f"{name!r} is unknown; choose from {', '.join(choices)}")
    for peer, folder in checkouts.items():
        if not (Path(folder) / CHECKOUTS[peer]).is_file():
            raise ValueError(
                f"--{peer}={folder} is no checkout of {peer}: it has no {CHECKOUTS[peer]}"
            )
        if "gpt2" not in shapes:
            raise ValueError(f"--{peer} is timed on the shape gpt2; add it to --shapes")
    # nanoGPT is written in torch, nanodo in JAX, which is here.
    needed: tuple[str, ...] = ("torch",) if "nanogpt" in checkouts else ()
    if transformers:
        needed = ("torch", "transformers")
    if not all(importlib.util.find_spec(name) for name in needed):
        raise ValueError(
            "the peers need torch and transformers; pip install '.[parity]', or pass --nopeers"
        )
    results = []
    for shape in shapes:
        for dtype in dtypes:
            # The products run in the same turns, so the share of the machine's rate is of the same
            # minutes.
            names = contenders(shape, dtype, transformers, checkouts)
            products = [
                f"product:{dtype}:{library}" for library in ["jax", *(["torch"] if needed else [])]
            ]
            timed = take_turns("research.bench.contender", [*names.values(), *products], rounds)
            # The best product of the run is taken for the machine's peak, which no sheet tells of a
            # shared machine.
            best = max(2 * PRODUCT_SIDE**3 / timed[name]["seconds"] for name in products)
            results += rows(
                shape, dtype, {contender: timed[name] for contender, name in names.items()}, best
            )
    return results


def contenders(
    shape: str, dtype: str, transformers: bool, checkouts: dict[str, str]
) -> dict[str, str]:
    """Arguments of the contenders' processes by the contenders' names, ours first."""
    # Ours first, as in the table.
    names = {OURS: f"{shape}:{dtype}:{OURS}"}
    if dtype != "float32":
        names[IN_FLOAT32] = f"{shape}:float32:{OURS}"
    peers = [("transformers", ""), (REFERENCE, "")] if transformers else []
    if shape == "gpt2":
        for peer, folder in checkouts.items():
            # torch.compile is an option of nanoGPT; JAX compiles nanodo in any case.
            variants = [peer, f"{peer}_compiled"] if peer == "nanogpt" else [peer]
            peers += [(variant, f":{Path(folder).absolute()}") for variant in variants]
    return names | {peer: f"{shape}:{dtype}:{peer}{folder}" for peer, folder in peers}


def rows(
    shape: str, dtype: str, timed: dict[str, dict[str, Any]], best_flops: float
) -> list[dict[str, Any]]:
    """A row for each contender of a run: seconds, tokens_per_second, peak_bytes, gflops, share (of
    `best_flops`, the best matrix product a second of the same run), ratio (its speed over that of
    transformers under torch.compile, None without it) and graft_ratio (Graft's speed over its)."""
    # One count for all contenders: the shapes have equal matrix work by design.
    flops = BATCH * LENGTH * train_flops_per_token(SHAPES[shape], LENGTH)
    reference = timed.get(REFERENCE)
    return [
        {
            "shape": shape,
            "dtype": dtype,
            "contender": contender,
            **result,
            "tokens_per_second": BATCH * LENGTH / result["seconds"],
            "gflops": flops / result["seconds"] / 1e9,
            "share": flops / result["seconds"] / best_flops,
            "ratio": reference["seconds"] / result["seconds"] if reference else None,
            "graft_ratio": result["seconds"] / timed[OURS]["seconds"],
        }
        for contender, result in timed.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines for a person."""
    lines = [
        f"{'shape':6} {'dtype':9} {'contender':22} {'s/step':>7} {'tokens/s':>9} {'ratio':>6} "
        f"{'Graft to it':>11} {'of GEMM':>8} {'peak MB':>8}"
    ]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"{row['shape']:6} {row['dtype']:9} {row['contender']:22} {row['seconds']:7.3f} "
            f"{row['tokens_per_second']:9.0f} {ratio:>6} {row['graft_ratio']:11.2f} "
            f"{row['share']:8.0%} {row['peak_bytes'] / 1e6:8.0f}"
        )
    lines.append(
        "ratio: tokens per second over those of transformers under torch.compile, in the same run"
    )
    lines.append(
        "Graft to it: tokens per second of Graft over those of the row's contender, in the same run"
    )
    return "\n".join(lines)
