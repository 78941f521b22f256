"""Where the time of a call goes, by the named scopes of the program (`research.scopes`): the
profiler's events, each looked up in the compiled programs for the scope of its operation."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from research.scopes import parts_of

MOST = 30  # rows of a table
OUTSIDE = "(outside of all scopes)"
# An instruction of a compiled program and its operation, and where in the model it is from.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?\s([\w-]+)\(")
_PATH = re.compile(r'op_name="([^"]*)"')
# Their events span those of what they call.
_CALLS = ("while", "call", "conditional", "async-start", "async-done")


class Share(NamedTuple):
    """The seconds of a call in one scope and one pass: "forward", "backward" or "recomputed"."""

    scope: str
    during: str
    seconds: float


def settings(folder: Path) -> dict[str, str]:
    """The environment of a process that leaves its compiled programs in `folder`."""
    import os

    flags = f"--xla_dump_to={folder}/programs --xla_dump_hlo_as_text"
    # A program that comes from the cache of compiled ones is not written.
    return {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }


def record(run: Callable[[], Any], folder: Path) -> None:
    """Leaves a trace of one call in `folder`."""
    import jax

    with jax.profiler.trace(str(folder / "trace")):
        run()


def read(folder: Path) -> list[Share]:
    """The shares of the recorded call, the longest first. On a CPU they add up the threads."""
    import jax

    programs = _programs(folder / "programs")
    [trace] = folder.glob("trace/**/*.xplane.pb")
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" not in stats:
                    continue
                module = re.sub(r"\(\d+\)$", "", str(stats.get("hlo_module", "")))
                operation, path = programs.get((module, stats["hlo_op"]), ("", ""))
                if operation not in _CALLS:
                    seconds[_scope(path), _pass(path)] += event.duration_ns / 1e9
    shares = [Share(*key, spent) for key, spent in seconds.items()]
    return sorted(shares, key=lambda share: -share.seconds)


def table(shares: Sequence[Share]) -> str:
    """The shares as a table of Markdown; the shortest are added up."""
    total = sum(share.seconds for share in shares)
    rest = sum(share.seconds for share in shares[MOST:])
    rows = [*shares[:MOST], *([Share("the rest", "", rest)] if rest else [])]
    lines = ["| scope | pass | ms | share |", "|---|---|---|---|"]
    for scope, during, spent in rows:
        lines.append(f"| {scope} | {during} | {spent * 1e3:.3f} | {spent / total:.1%} |")
    return "\n".join([*lines, f"| all | | {total * 1e3:.3f} | |"])


def _programs(folder: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(operation, op_name) of every instruction of the compiled programs, by (module, name)."""
    found = {}
    for path in sorted(folder.glob("*after_optimizations.txt")):
        first, *lines = path.read_text().splitlines()
        module = first.removeprefix("HloModule ").partition(",")[0]
        for line in lines:
            if match := _INSTRUCTION.match(line):
                path_of = _PATH.search(line)
                found[module, match[1]] = match[2], path_of[1] if path_of else ""
    return found


def _scope(path: str) -> str:
    # The backward pass of a checkpoint names the scope around it twice.
    return "/".join(name for name, _ in groupby(parts_of(path))) or OUTSIDE


def _pass(path: str) -> str:
    if "rematted_computation" in path:
        return "recomputed"
    return "backward" if "transpose(" in path else "forward"
