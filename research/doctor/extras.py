"""What Graft's installation asks for: the base packages and those of each extra."""

import re
import sys
from importlib.metadata import PackageNotFoundError, requires

_DISTRIBUTION = "graft-research"
_DEVELOPMENT = {"test", "parity"}  # for those who change Graft


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """(base, {extra: lines}) of the installed package, such as (["flax>=0.12", ...], {"tpu":
    ["jax[tpu]>=0.10.1"], ...}). Lines that are for another Python are left out. ([], {}) where
    Graft is not installed and only on the path."""
    try:
        lines = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        return [], {}
    base: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        least = re.search(r"""python_version\s*>=\s*["'](\d+)\.(\d+)""", marker)
        if least and sys.version_info[:2] < (int(least[1]), int(least[2])):
            continue
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)""", marker)
        (extras.setdefault(extra[1], []) if extra else base).append(requirement.strip())
    return base, {name: lines for name, lines in extras.items() if name not in _DEVELOPMENT}
