"""The speeds that a card is judged by, ours beside what a user would take instead.

Weights and tokens are random and nothing is fetched. Each contender runs in a process of its own
(`card_contender`), since two models rarely fit a card together, and contenders take turns: each
process runs twice, one after the other and again. On a machine without an accelerator the same
works run at their smallest sizes, which shows that they run.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.bench import card_profile
from research.bench.card_works import OURS, WORKS

COLUMNS = ("work", "who", "seconds", "tokens_per_second", "device", "peak_bytes")
# What a peer needs beside the tokens: packages. All but unsloth are in the extra [parity].
PEERS = {
    "transformers": ("torch", "transformers"),
    "peft": ("torch", "transformers", "peft", "bitsandbytes"),
    "unsloth": ("torch", "unsloth"),
}
TURNS = 2  # of each contender
QUICK_SECONDS = 280  # after which --quick begins nothing more


def measure(names: Sequence[str], quick: bool, rounds: int, peers: bool) -> list[dict[str, Any]]:
    """One row a contender with the keys `COLUMNS`: median `seconds` of `rounds` calls,
    `tokens_per_second`, the `device`'s name, and `peak_bytes` of its memory (of the process on a
    CPU).

    `names` are of `WORKS`, none for all that `quick` leaves. Contenders that fail, such as for want
    of memory, and with `quick` those for which no time is left, are named on standard error and
    left out. ValueError for an unknown name.
    """
    chosen = _chosen(names, quick)
    end = time.monotonic() + QUICK_SECONDS if quick else None
    rows = []
    for name in chosen:
        seen: dict[str, list[dict]] = {who: [] for who in _contenders(name, peers)}
        for turn in range(1 if quick else TURNS):
            for who in seen:
                # A CPU has none of our kernels to compare.
                if ":" in who and rows_on_cpu(seen[OURS]):
                    continue
                # One that failed once would fail again.
                if turn and not seen[who]:
                    continue
                answer = _run(name, who, -(-rounds // TURNS), end)
                seen[who] += [answer] if answer else []
        rows += [_row(name, who, answers) for who, answers in seen.items() if answers]
    return rows


def profile(names: Sequence[str], quick: bool) -> str:
    """Where the time of one call of each work goes, ours alone, as tables of Markdown."""
    tables = []
    for name in _chosen(names, quick):
        with tempfile.TemporaryDirectory() as folder:
            if _run(name, OURS, 1, None, Path(folder)):
                rows = card_profile.read(Path(folder))
                tables.append(f"{name}\n\n{card_profile.table(rows)}")
    return "\n\n".join(tables)


def rows_on_cpu(answers: Sequence[dict[str, Any]]) -> bool:
    """Whether what was measured first ran on a CPU, or did not run."""
    return not answers or answers[0]["device"] == "cpu"


def _chosen(names: Sequence[str], quick: bool) -> list[str]:
    unknown = [name for name in names if name not in WORKS]
    if unknown:
        raise ValueError(f"work {unknown[0]!r} is unknown; choose from {', '.join(WORKS)}")
    return list(names) or [name for name, work in WORKS.items() if work.quick or not quick]


def _contenders(name: str, peers: bool) -> list[str]:
    """Who takes part: ours as a run takes it, its variants, and the peers that are installed."""
    work = WORKS[name]
    installed = [peer for peer in work.peers if peers and _installed(peer)]
    return [OURS, *(f"{OURS}:{variant}" for variant in work.variants), *installed]


def _installed(peer: str) -> bool:
    # Looked for and not imported: torch would take memory of the card in this process, too.
    return all(importlib.util.find_spec(package) for package in PEERS[peer])


def _row(name: str, who: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of a contender, of all its turns."""
    seconds = statistics.median(second for answer in answers for second in answer["seconds"])
    return {
        "work": name,
        "who": who,
        "seconds": seconds,
        "tokens_per_second": answers[0]["tokens"] / seconds,
        "device": answers[0]["device"],
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
    }


def _run(
    name: str, who: str, rounds: int, end: float | None, folder: Path | None = None
) -> dict[str, Any] | None:
    """What a contender's process prints; None where it fails or has no time, which is told. With a
    folder it leaves a profile there."""
    left = None if end is None else end - time.monotonic()
    if left is not None and left <= 0:
        print(f"{name}: {who} is left out: --quick has no time left", file=sys.stderr)
        return None
    print(f"{name}: {who}", file=sys.stderr)
    # A process takes what memory it needs, so that the peak says something.
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if folder is not None:
        settings |= card_profile.settings(folder)
    command = [sys.executable, "-m", "research.bench.card_contender", name, who, str(rounds)]
    command += [] if folder is None else [str(folder)]
    environment = {**os.environ, **settings}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=left
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: {who} is left out: --quick has no time left", file=sys.stderr)
        return None
    # One work that does not fit is no reason to lose the others.
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        print(f"{name}: {who} failed and is left out: {said[-1][:300]}", file=sys.stderr)
        return None
    # Libraries may print lines of their own; the row is the last.
    return json.loads(done.stdout.splitlines()[-1])


def versions() -> str:
    """The versions of what is measured, in one line."""
    from importlib.metadata import PackageNotFoundError, version

    # Speeds change from release to release, so a table without versions could not be repeated.
    told = []
    for package in ("jax", "tokamax", "torch", "transformers", "peft", "bitsandbytes", "unsloth"):
        try:
            told.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(told)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table of Markdown, with each work's ratio of our speed to each other's."""
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
        other = row["who"] != OURS and work in ours
        # Above 1 where we are faster.
        ratio = f"{seconds / ours[work]:.2f}" if other else ""
        lines.append(
            f"| {work} | {row['who']} | {seconds:.6f} | {row['tokens_per_second']:,.0f} | {ratio} "
            f"| {row['peak_bytes'] / 2**30:.2f} |"
        )
    return "\n".join(lines)
