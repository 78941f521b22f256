"""What a notebook's runtime is and what will be slow on it, by the table of devices: told before
JAX is imported, or even installed. It needs nothing but the standard library."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from research.devices.device import GB, GIB, Device
from research.devices.nodes import accelerator
from research.devices.table import DEVICES, TARGETS

# Bytes a parameter of training in full: float32 weight, gradient and Adam's two moments.
_TRAINED = 16
# Bytes/s under which a card is slower at reading its weights than at all else; datasheets of an
# A100 and newer say 1,500 and more.
_NARROW = 500 * GB


def describe(
    root: str | os.PathLike = "/", environment: Mapping[str, str] = os.environ, smi: str = ""
) -> str:
    """A line that names this machine's device, then a line, from "  slow:", for each thing that
    will be slow on it and what helps.

    `root` and `environment` are as of `nodes.accelerator`. `smi` is the program that tells the
    card's name where the driver has no file of it, by default nvidia-smi.

        print(runtime.describe())
    """
    kind = accelerator(root, environment)
    cores = os.cpu_count() or 1
    if kind is None or environment.get("JAX_PLATFORMS") == "cpu":
        return _lines(f"CPU, {cores} cores", _SLOW_CPU)
    if kind == "rocm":
        return _lines("a card of AMD's, which no extra of Graft installs", _SLOW_CPU)
    if kind == "cuda":
        name = _card(Path(root), smi or "nvidia-smi")
        device = DEVICES.get(name)
        return _lines(_sized(name or "a card of NVIDIA's", device), _slow_card(device))
    name, device = _tpu(environment)
    return _lines(_sized(name, device), _slow_tpu(device, cores))


_SLOW_CPU = (
    "training and long generations: take fewer steps and shorter rows, or a runtime with a card or "
    "a TPU (Runtime > Change runtime type)",
    "bfloat16, float16 and 4 bits, which are widened before each product: float32 is the fast type",
)


def _slow_card(device: Device | None) -> list[str]:
    slow = ["the first step of every new shape of batch, which compiles first"]
    if device is None:
        return slow
    if "bfloat16" not in device.flops:
        slow.append(
            "bfloat16, of which it has no fast product and which is the default: set "
            "config.precision.compute=float32"
        )
    if (device.capability or (8, 0)) < (8, 0):
        slow.append("attention over long rows: the fused kernels want a card of 2020 or newer")
    if device.memory_bandwidth < _NARROW:
        gigabytes = device.memory_bandwidth / GB
        slow.append(
            f"generation: a token reads all weights at {gigabytes:,.0f} GB/s, so at most "
            f"{gigabytes / 2:,.0f} tokens/s of a model of 1B parameters in 16 bits; 4 bits and "
            "several prompts at a time help"
        )
    return [*slow, *_large(device)]


def _slow_tpu(device: Device | None, cores: int) -> list[str]:
    return [
        "the first step of every new shape of batch, which compiles first",
        "rows of many lengths: each length compiles anew; packed rows have one",
        f"reading pictures and texts, which the host's {cores} cores do",
        *_large(device),
    ]


def _large(device: Device | None) -> list[str]:
    """What does not fit rather than what is slow, and would end a run."""
    if device is None or device.memory is None:
        return []
    most = device.memory / _TRAINED / 1e9
    return [
        f"training in full of more than {most:.1f}B parameters, which does not fit at all: "
        "method=lora or method=qlora trains larger ones"
    ]


def _sized(name: str, device: Device | None) -> str:
    if device is None or device.memory is None:
        return f"{name}, of which the table of devices knows no memory"
    return f"{name}, {device.memory / GIB:.1f} GiB"


def _lines(name: str, slow: list[str] | tuple[str, ...]) -> str:
    return "\n".join([f"this runtime has {name}", *(f"  slow: {one}" for one in slow)])


def _card(root: Path, smi: str) -> str:
    """The name of the first card as JAX has it in `device_kind`, "" where nothing says it."""
    for file in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    command = [smi, "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    names = said.stdout.strip().splitlines()
    return names[0].strip() if names and not said.returncode else ""


def _tpu(environment: Mapping[str, str]) -> tuple[str, Device | None]:
    """By TPU_ACCELERATOR_TYPE, such as v5litepod-1, which hosts of TPUs and Colab set."""
    said = environment.get("TPU_ACCELERATOR_TYPE", "")
    generation = said.partition("-")[0].replace("v5litepod", "v5e")
    device = TARGETS.get(generation) or DEVICES.get(f"TPU {generation}")
    return (f"TPU {said}", device) if said else ("a TPU", None)
