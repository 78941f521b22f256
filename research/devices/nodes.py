"""Which accelerator this machine has, by its device files: known before JAX is imported, or even
installed. The notebook, launch/local.sh and `import research` ask it."""

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# Device files by kind of accelerator, as patterns below the root of the file system.
NODES: Mapping[str, tuple[str, ...]] = {
    # v2 to v5p have Google's own driver, v5e and newer the kernel's VFIO. /dev/accel is a folder
    # of Linux's own for other makers' chips, and /dev/vfio/vfio is there without any device.
    "tpu": ("dev/accel[0-9]*", "dev/vfio/[0-9]*"),
    # The driver's files, in containers too; Windows' Linux has only dxg; Jetson boards have nvmap.
    "cuda": ("dev/nvidia[0-9]*", "dev/nvidiactl", "dev/dxg", "dev/nvmap"),
    "rocm": ("dev/kfd",),  # AMD's cards
}
# Packages through which JAX looks for the accelerators above; each prints a traceback or warnings
# where it finds none. They are also installed to compile for hardware that is not here.
_PLUGINS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")


def accelerator(
    root: str | os.PathLike = "/", environment: Mapping[str, str] = os.environ
) -> str | None:
    """ "tpu", "cuda" or "rocm", the first that the machine has; None where it has none of them.

    `root` is the folder whose dev/ is looked through. A host of a TPU also tells by TPU_WORKER_ID.
    """
    if environment.get("TPU_WORKER_ID"):
        return "tpu"
    for kind, patterns in NODES.items():
        if any(next(Path(root).glob(pattern), None) for pattern in patterns):
            return kind
    return None


def extra(root: str | os.PathLike = "/", environment: Mapping[str, str] = os.environ) -> str:
    """The extra of setup.cfg for this machine, in brackets: "[tpu]", "[cuda]", or "[cuda12]" where
    JAX's plugin for CUDA 12 is installed already (two plugins would both claim the card). "" where
    no accelerator has one, and where JAX_PLATFORMS asks for the CPU."""
    kind = accelerator(root, environment)
    if environment.get("JAX_PLATFORMS") == "cpu" or kind not in ("tpu", "cuda"):
        return ""
    return "[cuda12]" if kind == "cuda" and _installed("jax-cuda12-plugin") else f"[{kind}]"


def runs_on_cpu(root: str | os.PathLike = "/", environment: Mapping[str, str] = os.environ) -> bool:
    """True if JAX will find nothing but the CPU: by JAX_PLATFORMS or, where that is unset, because
    no accelerator has a device file."""
    platforms = environment.get("JAX_PLATFORMS")
    return platforms == "cpu" if platforms else accelerator(root, environment) is None


def choose_platform() -> None:
    """Sets JAX_PLATFORMS=cpu where JAX would look for a TPU or a card that is not there.

    That is: JAX_PLATFORMS is not set, libtpu or a CUDA plugin is installed, and no accelerator has
    a device file. It changes nothing but what JAX prints: the CPU is what it would fall back to.
    """
    if os.environ.get("JAX_PLATFORMS") or not runs_on_cpu() or not any(map(find_spec, _PLUGINS)):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    # JAX reads its environment when it is imported; until it is first used its own option counts.
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
