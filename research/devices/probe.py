"""What JAX finds on this machine, asked in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_PROGRAM = """
import json, jax
devices = jax.devices()
memory = (devices[0].memory_stats() or {}).get("bytes_limit")
print(json.dumps({
    "platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices),
    "memory": memory,
}))
"""
_PATIENCE = 120.0  # seconds: a TPU that another process holds makes JAX wait


def jax_devices(
    python: str = sys.executable, environment: Mapping[str, str] = os.environ
) -> tuple[dict[str, Any], str]:
    """({"platform", "kind", "count", "memory"}, ""), bytes of memory or None being those of the
    first device that JAX can use; or ({}, what JAX said) where it failed.

    A wrong plugin or flag ends the process that asks, and devices that a process has found it also
    holds.
    """
    try:
        done = subprocess.run(
            [python, "-c", _PROGRAM],
            env={**environment, "TF_CPP_MIN_LOG_LEVEL": "1"},
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {_PATIENCE:.0f} seconds"
    try:
        return json.loads(done.stdout.strip().splitlines()[-1]), ""
    except (IndexError, ValueError):
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        # A process that a signal has ended may have said nothing.
        return {}, " ".join(lines[-3:]) or f"it ended with exit code {done.returncode}"
