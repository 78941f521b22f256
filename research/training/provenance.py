"""`provenance.json`: code, data, machine and command of a run, so that its numbers can be made
again. No secret is written."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import research
from research.files import read_json, write_json

PACKAGES = (
    "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax",
    "orbax-checkpoint", "grain", "tensorflow-datasets", "array-record", "numpy", "sentencepiece",
    "tokenizers", "safetensors", "ml-collections",
)  # fmt: skip
# What changes a result or a speed, and nothing that could hold a key.
ENVIRONMENT = (
    "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64", "JAX_NUM_CPU_DEVICES",
    "JAX_DEBUG_NANS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE", "LIBTPU_INIT_ARGS", "TPU_VISIBLE_CHIPS",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "GLIBC_TUNABLES", "OMP_NUM_THREADS",
    "PYTHONHASHSEED", "GRAFT_CACHE", "SLURM_JOB_ID", "SLURM_NNODES", "SLURM_NTASKS",
)  # fmt: skip
# At the end of a name, so that `--token-budget` and `MONKEY` are not taken for secrets.
_SECRET_NAME = re.compile(
    r"(^|[-_.])(key|apikey|token|secret|password|passwd|pwd|credentials?)$", re.IGNORECASE
)
_URL_USER = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "[hidden]"


def describe_run(
    *,
    seed: int,
    dataset: Mapping[str, Any],
    tokenizer: str,
    argv: Sequence[str] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """The provenance of the run that starts now in this process, as JSON values.

    `dataset` has at least `fingerprint` and `heldout_files`; `tokenizer` is the tokenizer's
    fingerprint; `argv` defaults to the command line of this process. `facts` are further entries,
    such as `parameters` (their number) and `parent` (the checkpoint that the run starts from).
    """
    import jax  # imported where used, so that reading a provenance needs no devices

    devices = jax.devices()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        # orig_argv still has the interpreter and "-m research.train", which argv lacks.
        "command": hide_secrets(sys.orig_argv if argv is None else argv),
        "git": git_state(Path(research.__file__).parent),
        "seed": seed,
        "dataset": dict(dataset),
        "tokenizer": tokenizer,
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "python": platform.python_version(),
        "packages": package_versions(),
        "environment": {
            name: hide_secrets([os.environ[name]])[0] for name in ENVIRONMENT if name in os.environ
        },
        **facts,
    }


def write_provenance(workdir: str | os.PathLike, record: Mapping[str, Any], step: int = 0) -> None:
    """Writes `provenance.json`.

    If the run is resumed (`step` > 0) the first record stays. Its list `resumed` gets an entry with
    the step and with whatever in `record` differs from the first record.
    """
    path = Path(workdir) / "provenance.json"
    if step and path.exists():
        # Code, machine or flags may change between the parts of a run; each change is on record.
        first = read_json(path)
        changed = {name: value for name, value in record.items() if first.get(name) != value}
        record = {**first, "resumed": [*first.get("resumed", []), {"step": step, **changed}]}
    write_json(path, record)


def git_state(folder: Path) -> dict[str, Any]:
    """`commit` and `dirty` (changed or new files) of the repository that tracks `folder`, both None
    outside one.

    A package installed inside somebody's checkout, such as in its virtual environment, is not
    tracked there.
    """
    # `ls-files` names the file only where git tracks it.
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or not _git(folder, "ls-files", "--", "__init__.py"):
        return {"commit": None, "dirty": None}
    changes = _git(folder, "status", "--porcelain")
    return {"commit": commit.strip(), "dirty": None if changes is None else bool(changes.strip())}


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hide_secrets(argv: Sequence[str]) -> list[str]:
    """The command line without the values of flags named like a secret, without user names and
    passwords in URLs, and without any text that the environment holds under such a name."""
    secrets = [
        # Shorter values, such as "1", would blot out parts of innocent words.
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= 6
    ]
    shown, hide_next = [], False
    for word in argv:
        name, equals, value = word.partition("=")
        flag = name.startswith("-") and bool(_SECRET_NAME.search(name))
        # The value of `--token VALUE` is a word of its own.
        if hide_next and not word.startswith("-"):
            word = HIDDEN
        elif flag and equals:
            word = f"{name}={HIDDEN}"
        hide_next = flag and not equals
        for secret in secrets:
            word = word.replace(secret, HIDDEN)
        shown.append(_URL_USER.sub(f"{HIDDEN}@", word))
    return shown


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            # A repository on a slow network file system must not keep a run from starting.
            ["git", "-C", str(folder), *command],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
