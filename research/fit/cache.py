"""Fits that were made, kept under the cache directory: a program is compiled once for a target and
its compiler's version.

There are two levels. `question` hashes what was asked and the package's own source: an equal
question is answered without lowering anything. `program` hashes the lowered program: what changes
neither it nor the way it is read (a data source, a logging interval, a comment in the model) costs
the lowering and not the compile.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import research
from research.downloads.cache import cache_directory
from research.files import read_json, write_json
from research.fit.report import Fit

COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt")
LIBRARIES = (*COMPILERS, "flax", "optax")  # what a program is traced through
# A change of the estimates or pictures in `fit` also counts, which costs a compile and never a
# wrong answer.
READERS = ("fit", "devices", "training/flops.py")  # what makes a Fit of a compiled program
# What the compilers and JAX read from the environment; how many fake CPU devices there are is the
# target's to say.
SETTINGS = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
)


def question(experiment: Mapping[str, Any], target: str, step: str) -> str:
    """The key of a question: an experiment as `Experiment.to_json` gives it, a target's spelling
    and the kind of step."""
    # The whole package counts, since any module may change the program that is traced.
    return _digest(experiment, target, step, _versions(LIBRARIES), settings(), _source((".",)))


def program(text: str, target: str, step: str) -> str:
    """The key of a lowered program, by its text."""
    # The text already contains what models and optimizers made of it, so only the compilers and the
    # code that reads a compiled program can still change the answer.
    return _digest(text, target, step, _versions(COMPILERS), settings(), _source(READERS))


def recall(key: str) -> Fit | None:
    """What `keep` was given under either key; None where there is nothing, or something damaged."""
    try:
        entry = read_json(_file(key))
        # A question's entry only names the program, which others may share.
        if "program" in entry:
            entry = read_json(_file(entry["program"]))
        return Fit.from_json(entry["fit"])
    # A damaged entry, or one of an older version, counts as absent: it is compiled and written
    # again.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep(question_key: str, program_key: str, fit: Fit) -> None:
    """Keeps a fit under both keys. A cache directory that cannot be written is no reason to lose
    the answer."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        # The program goes first: a question never names a file that is not there yet.
        write_json(_file(program_key), {"fit": fit.to_json()})
        write_json(_file(question_key), {"program": program_key})
    except OSError:
        pass


def folder() -> Path:
    """Where fits are kept."""
    return cache_directory() / "fit"


def settings() -> dict[str, str]:
    """The variables of `SETTINGS` that are set, as a compile in a process of its own sees them."""
    variables = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    # Tests and trials set this flag for their own CPU devices; it changes no compile.
    flags = re.sub(
        r"--xla_force_host_platform_device_count=\S*", "", variables.pop("XLA_FLAGS", "")
    ).split()
    return variables | ({"XLA_FLAGS": " ".join(flags)} if flags else {})


def _file(key: str) -> Path:
    return folder() / f"{key}.json"


def _digest(*parts: Any) -> str:
    # 128 bits are far more than any number of cached fits needs; sorted keys make equal dicts
    # equal.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    return {package: _version(package) for package in packages}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _source(places: tuple[str, ...]) -> str:
    """A digest of the package's Python files in these folders or at these paths."""
    root = Path(research.__file__).parent
    files = {
        path
        for place in places
        for path in ([root / place] if place.endswith(".py") else (root / place).rglob("*.py"))
    }
    return _digest(
        *(
            (str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(files)
        )
    )
