"""The speeds that a card is judged by: training, QLoRA, decoding, experts, and the kernels below
them, ours beside what a user would take instead.

Weights and tokens are random and nothing is fetched. Each contender runs in a process of its own
(`card_contender`), one after the other, since two models rarely fit a card together. On a machine
without an accelerator the same works run at their smallest sizes, which shows that they run.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OURS = "graft"
COLUMNS = ("work", "who", "seconds", "tokens_per_second", "device", "peak_bytes")
# What a peer needs beside the tokens: packages, all of which are in the extra [parity].
PEERS = {
    "transformers": ("torch", "transformers"),
    "peft": ("torch", "transformers", "peft", "bitsandbytes"),
}


@dataclass(frozen=True)
class Work:
    """What a contender does in one call, at the sizes of a card.

    kind    "train", "decode", "product" or "attention", see `card_contender`
    preset  the shape of the model, of which `layers` are taken; of a product or attention its sizes
    rows, tokens   texts at once and their tokens; of decoding the tokens of prompt and continuation
    format  of quantized weights, which "train" puts adapters on; "" for none
    peer    who else does it, one of `PEERS`
    quick   whether --quick has it
    """

    kind: str
    preset: str = "llama3_8b"
    layers: int = 32
    rows: int = 1
    tokens: int = 2048
    format: str = ""
    peer: str = ""
    quick: bool = True


WORKS = {
    # All parameters with AdamW are 12 bytes each: 32 layers would not fit a card of 80 GB.
    "train": Work("train", layers=8, tokens=8192, peer="transformers"),
    "qlora": Work("train", format="nf4", peer="peft"),
    "qlora-4": Work("train", rows=4, format="nf4", peer="peft", quick=False),
    # Two layers of Mixtral show what grouped products cost; 32 are 47 billion parameters.
    "experts": Work("train", "mixtral_8x7b", layers=2, tokens=4096, quick=False),
    # 512 tokens are read and 128 written.
    "decode-1": Work("decode", tokens=512 + 128, peer="transformers"),
    "decode-8": Work("decode", rows=8, tokens=512 + 128, peer="transformers", quick=False),
    "decode-1-nf4": Work("decode", tokens=512 + 128, format="nf4"),
    # With 16 tokens the weight's bytes bound the time, with 4,096 its products do: a format may win
    # in one and lose in the other.
    "product-16": Work("product", tokens=16),
    "product-16-nf4": Work("product", tokens=16, format="nf4"),
    "product-16-int8": Work("product", tokens=16, format="int8", quick=False),
    "product-16-int4": Work("product", tokens=16, format="int4", quick=False),
    "product-4096": Work("product", tokens=4096),
    "product-4096-nf4": Work("product", tokens=4096, format="nf4"),
    "product-4096-int8": Work("product", tokens=4096, format="int8", quick=False),
    "product-4096-int4": Work("product", tokens=4096, format="int4", quick=False),
    "attention": Work("attention", rows=2, tokens=8192),
    "attention-window": Work("attention", "mistral_7b", rows=2, tokens=8192),
}


def measure(names: Sequence[str], quick: bool, rounds: int, peers: bool) -> list[dict[str, Any]]:
    """One row a contender with the keys `COLUMNS`: median `seconds` of `rounds` calls,
    `tokens_per_second`, the `device`'s name, and `peak_bytes` of its memory (of the process on a
    CPU).

    `names` are of `WORKS`, none for all that `quick` leaves. A contender that fails, such as for
    want of memory, is named on standard error and left out. ValueError for an unknown name.
    """
    unknown = [name for name in names if name not in WORKS]
    if unknown:
        raise ValueError(f"work {unknown[0]!r} is unknown; choose from {', '.join(WORKS)}")
    chosen = names or [name for name, work in WORKS.items() if work.quick or not quick]
    rows = []
    for name in chosen:
        # The peer follows at once, while the card is as warm as it was for us.
        contenders = [OURS, *([WORKS[name].peer] if peers and _installed(WORKS[name].peer) else [])]
        for who in contenders:
            row = _run(name, who, rounds)
            rows += [row] if row else []
    return rows


def _installed(peer: str) -> bool:
    # Looked for and not imported: torch would take memory of the card in this process, too.
    return bool(peer) and all(importlib.util.find_spec(package) for package in PEERS[peer])


def _run(name: str, who: str, rounds: int) -> dict[str, Any] | None:
    """The row of one contender; None where it fails, which is told."""
    print(f"{name}: {who}", file=sys.stderr)
    # A process takes what memory it needs, so that the peak says something.
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "research.bench.card_contender", name, who, str(rounds)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    # One work that does not fit is no reason to lose the others.
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        print(f"{name}: {who} failed and is left out: {said[-1][:300]}", file=sys.stderr)
        return None
    # Libraries may print lines of their own; the row is the last.
    return {"work": name, "who": who, **json.loads(done.stdout.splitlines()[-1])}


def versions() -> str:
    """The versions of what is measured, in one line."""
    from importlib.metadata import PackageNotFoundError, version

    told = []
    # Speeds change from release to release, so a table without versions could not be repeated.
    for package in ("jax", "tokamax", "torch", "transformers", "peft", "bitsandbytes"):
        try:
            told.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(told)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table of Markdown, with each work's ratio of our speed to its peer's."""
    device = rows[0]["device"] if rows else "no device"
    ours = {row["work"]: row["seconds"] for row in rows if row["who"] == OURS}
    lines = [
        f"{device}; {versions()}",
        "",
        "| work | who | seconds | tokens/s | ours to it | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        work, seconds = row["work"], row["seconds"]
        peer = row["who"] != OURS and work in ours
        # Above 1 where we are faster.
        ratio = f"{seconds / ours[work]:.2f}" if peer else ""
        lines.append(
            f"| {work} | {row['who']} | {seconds:.6f} | {row['tokens_per_second']:,.0f} | {ratio} "
            f"| {row['peak_bytes'] / 2**30:.2f} |"
        )
    return "\n".join(lines)
