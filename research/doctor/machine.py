"""What a machine has: looked up without JAX, which a broken machine may not be able to import."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from research.devices.nodes import accelerator
from research.devices.probe import jax_devices
from research.downloads.cache import cache_directory


@dataclass(frozen=True)
class Machine:
    """What was found.

    python       (3, 11, 4) of the interpreter
    packages     version by name of every installed package, names in lower case with dashes
    accelerator  "tpu", "cuda", "rocm" by the device files, or None
    driver       major version of NVIDIA's driver, None without one
    environment  the variables that this process was started with
    memory       (bytes free, bytes in all) of the host, None where it does not say
    disk         bytes free where runs are written, the current folder
    cache        the folder of downloads, and why it cannot be written or ""
    devices      what JAX finds: platform, kind, count, memory in bytes or None; {} where it failed
    failure      the last lines of what JAX said as it failed, or ""
    """

    python: tuple[int, ...]
    packages: Mapping[str, str]
    accelerator: str | None
    driver: int | None
    environment: Mapping[str, str]
    memory: tuple[int, int] | None
    disk: int
    cache: tuple[Path, str]
    devices: Mapping[str, Any]
    failure: str

    def version(self, package: str) -> str | None:
        """The version of an installed package, None of another."""
        return self.packages.get(_plain(package))


def look(
    root: str | os.PathLike = "/",
    path: list[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    python: str = sys.executable,
) -> Machine:
    """Looks at this machine. For tests: the folder that stands for the root of the file system, the
    folders of packages (sys.path), the environment, and the Python that is asked what JAX finds."""
    root = Path(root)
    devices, failure = jax_devices(python, environment)
    return Machine(
        sys.version_info[:3],
        _packages(path),
        accelerator(root, environment),
        _driver(root),
        environment,
        _memory(root),
        shutil.disk_usage(".").free,
        _cache(environment),
        devices,
        failure,
    )


def _packages(path: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in distributions(path=sys.path if path is None else path):
        # The first on the path is the one that is imported.
        if name := package.metadata["Name"]:
            found.setdefault(_plain(name), package.version)
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _driver(root: Path) -> int | None:
    """NVIDIA's driver says its version in a file: "NVRM version: ... Module  580.65.06 ..."."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    version = re.search(r"\b(\d{3,})\.\d+", text)
    return int(version[1]) if version else None


def _memory(root: Path) -> tuple[int, int] | None:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    kib = {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    if not {"MemAvailable", "MemTotal"} <= kib.keys():
        return None
    return kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024


def _cache(environment: Mapping[str, str]) -> tuple[Path, str]:
    folder = Path(environment.get("GRAFT_CACHE") or cache_directory()).expanduser()
    # The nearest folder that is there is where the cache would be made.
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return folder, error.strerror or type(error).__name__
    return folder, ""
