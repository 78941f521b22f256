"""Tokens per second of greedy decoding in float32, of Graft's loop and its engine, of transformers
on torch and of llama.cpp."""

import importlib.util
import math
import os
import statistics
import sys
from typing import Any

import jax

from research.bench.turns import start
from research.models.model import Model
from research.models.presets import PRESETS

PRESET, PROMPT, NEW = "smollm2_135m", 64, 128
OURS, ENGINE, EAGER, LLAMA_CPP = "graft", "engine", "transformers", "llama_cpp"


def compare(batches: list[int], rounds: int, peers: bool, gguf: str = "") -> list[dict[str, Any]]:
    """One row a batch size and contender: prefill and decode tokens_per_second, their ratios to
    transformers, peak_bytes up to that batch, and share (of the machine's read bandwidth, which
    bounds decoding: a step reads every weight).

    A prompt has 64 tokens and 128 follow, the first of them counted with the prompt. llama.cpp
    takes part where `gguf` names a file of the model, which should be float32. All contenders take
    turns; medians of `rounds`.
    """
    check(batches, peers, gguf)
    # A contender's name in the table, and the argument of its process.
    names = {OURS: OURS, ENGINE: ENGINE}
    if peers:
        names[EAGER] = EAGER
    if gguf:
        names[LLAMA_CPP] = f"{LLAMA_CPP}:{gguf}"
    # The machine's read bandwidth is measured in the same turns, so that a busy machine slows both
    # sides of the ratio.
    reads = [f"read:{library}" for library in (("jax", "torch") if peers else ("jax",))]
    measured = _take_turns([*names.values(), *reads], sorted(batches), rounds)
    # All are float32. llama.cpp reads its own file, whose size is taken as it is.
    weight_bytes = 4 * sum(
        math.prod(s.shape) for s in jax.tree.leaves(Model(PRESETS[PRESET]).specs())
    )
    rows = []
    # Peak memory only grows in a process, so larger batches come last.
    for batch in sorted(batches):
        # The better of the two libraries counts as what the machine can do.
        bandwidth = max(1 / measured[name, batch]["read_seconds"] for name in reads)
        for contender, name in names.items():
            result = measured[name, batch]
            step_bytes = os.path.getsize(gguf) if contender == LLAMA_CPP else weight_bytes
            # The first new token comes with the prompt, so one less is decoded.
            decode = batch * (NEW - 1) / result["decode_seconds"]
            row = {
                "batch": batch,
                "contender": contender,
                **result,
                "prefill_tokens_per_second": batch * PROMPT / result["prefill_seconds"],
                "decode_tokens_per_second": decode,
                "read_bytes_per_second": bandwidth,
                "share": decode / batch * step_bytes / bandwidth,
            }
            for phase in ("prefill", "decode"):
                # Ratios of rates: more is better, so the peer's seconds are on top.
                theirs = measured[EAGER, batch][f"{phase}_seconds"] if peers else None
                row[f"{phase}_ratio"] = theirs / result[f"{phase}_seconds"] if peers else None
            rows.append(row)
    return rows


def check(batches: list[int], peers: bool, gguf: str) -> None:
    """ValueError for batch sizes below 1, and for a contender that is not installed."""
    if not batches or min(batches) < 1:
        raise ValueError(f"batches={batches} must be one or more sizes of at least 1")
    if peers and not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise ValueError(
            "the peers need torch and transformers; pip install '.[parity]', or pass --nopeers"
        )
    if gguf and not importlib.util.find_spec("llama_cpp"):
        raise ValueError(
            "--gguf is for llama.cpp; pip install llama-cpp-python, or leave the flag out"
        )
    if gguf and not os.path.isfile(gguf):
        raise ValueError(f"--gguf={gguf} is no file")


def _take_turns(
    names: list[str], batches: list[int], rounds: int
) -> dict[tuple[str, int], dict[str, Any]]:
    """Medians of what each contender answers, by name and batch; the first turn, which may compile,
    is not counted."""
    # Medians: a median of six turns forgives two that something else disturbed.
    contenders, results = [], {}
    try:
        for name in names:
            # No setting of the allocator: generation has none, and torch's growing caches take
            # minutes under training's.
            contenders.append(start("research.bench.decode_contender", name, allocator=""))
            print(f"{name} is ready", file=sys.stderr)
        for batch in batches:
            # One turn more than counted: the first compiles.
            answers = {c.name: [] for c in contenders}
            for turn in range(rounds + 1):
                for contender in contenders:
                    answers[contender.name].append(contender.ask(str(batch)))
                print(f"batch {batch}, round {turn} of {rounds}", file=sys.stderr)
            for name, (_, *counted) in answers.items():
                results[name, batch] = {
                    key: statistics.median(a[key] for a in counted) for key in counted[0]
                }
                # Every turn is kept beside the median: the spread says how quiet the machine was.
                results[name, batch] |= {
                    f"all_{key}": [a[key] for a in counted] for key in counted[0]
                }
            for contender in contenders:
                results[contender.name, batch] |= contender.ask("peak")
        return results
    finally:
        for contender in contenders:
            contender.process.kill()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines for a person."""
    lines = [
        f"{'batch':>5} {'contender':13} {'prefill tok/s':>13} {'ratio':>6} {'decode tok/s':>12} "
        f"{'ratio':>6} {'of read':>8} {'peak MB':>8}"
    ]
    for row in rows:
        ratios = [
            "" if row[f"{phase}_ratio"] is None else f"{row[f'{phase}_ratio']:.2f}"
            for phase in ("prefill", "decode")
        ]
        lines.append(
            f"{row['batch']:5} {row['contender']:13} "
            f"{row['prefill_tokens_per_second']:13.0f} {ratios[0]:>6} "
            f"{row['decode_tokens_per_second']:12.1f} {ratios[1]:>6} "
            f"{row['share']:8.0%} {row['peak_bytes'] / 1e6:8.0f}"
        )
    read = max(row["read_bytes_per_second"] for row in rows) / 1e9
    prepared = max(row.get("prepare_seconds", 0) for row in rows)
    lines.append(
        "ratio: over transformers, in the same run; "
        f"of read: share of {read:.0f} GB/s, which reading the weights takes"
    )
    lines.append(
        f"before the first token {OURS} lays out the weights, {prepared:.2f} s a call "
        "that no rate counts"
    )
    return "\n".join(lines)
