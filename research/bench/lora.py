"""Seconds of a fine-tuning step of SmolLM2-135M with adapters of rank 16 on all linear layers, of
Graft and of peft."""

import importlib.util
from typing import Any

from research.bench.turns import take_turns

BATCH, LENGTH, RANK, PRESET = 4, 256, 16, "smollm2_135m"
METHODS = ("lora", "qlora")  # over float weights, over NF4 with double quantization
OURS, PEFT = "graft", "peft"


def compare(
    methods: list[str], dtypes: list[str], rounds: int, peers: bool
) -> list[dict[str, Any]]:
    """A row a method, type and contender: seconds (the median of its turns), tokens_per_second,
    peak_bytes, and ratio (its tokens a second over peft's in the same run, None without it).
    ValueError for what is unknown or missing."""
    for name, choices in [(m, METHODS) for m in methods] + [
        (d, ("float32", "bfloat16")) for d in dtypes
    ]:
        if name not in choices:
            raise ValueError(f"{name!r} is unknown; choose from {', '.join(choices)}")
    # Asked before any contender starts: a missing package would end the run in its last process.
    needed = ("torch", "transformers", "peft", *(["bitsandbytes"] if "qlora" in methods else []))
    missing = [name for name in needed if peers and not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(
            f"the peers need {', '.join(missing)}; pip install '.[parity]', or pass --nopeers"
        )
    # A method at a time, so that only its two models are in memory.
    rows = []
    for method in methods:
        for dtype in dtypes:
            names = {
                name: f"{name}:{method}:{dtype}" for name in (OURS, *([PEFT] if peers else []))
            }
            timed = take_turns("research.bench.lora_contender", list(names.values()), rounds)
            # Ratios are of one run alone: seconds of different runs are not comparable on a shared
            # machine.
            reference = timed[names[PEFT]]["seconds"] if peers else None
            for contender, name in names.items():
                seconds = timed[name]["seconds"]
                # The measured figures first, then what follows from them.
                rows.append(
                    {
                        "method": method,
                        "dtype": dtype,
                        "contender": contender,
                        **timed[name],
                        "tokens_per_second": BATCH * LENGTH / seconds,
                        "ratio": reference / seconds if peers else None,
                    }
                )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines for a person."""
    lines = [
        f"{'method':7} {'dtype':9} {'contender':10} {'s/step':>7} {'tokens/s':>9} "
        f"{'ratio':>6} {'peak MB':>8}"
    ]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"{row['method']:7} {row['dtype']:9} {row['contender']:10} {row['seconds']:7.3f} "
            f"{row['tokens_per_second']:9.0f} {ratio:>6} {row['peak_bytes'] / 1e6:8.0f}"
        )
    lines.append("ratio: tokens per second over those of peft, in the same run")
    return "\n".join(lines)
