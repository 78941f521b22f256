"""The hardware that a step is compiled for: devices that a compiler knows without their being there."""

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

# OpenXLA's figures of the card (xla/backends/gpu/target_config/specs/h100_sxm.txtpb), as the compiler takes them.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
_GIB = 2**30
# Memory of a device as its maker sells it, bytes: cards in decimal gigabytes of which the driver shows 79.1 GiB, TPU
# chips in binary ones (cloud.google.com/tpu/docs/v5p and its neighbours). A chip of tpu7x is two devices, one of v4 is one
# if it is asked for so.
_CARDS = {"h100": (_H100, 84942979072)}
_CHIPS = {"v4": 32 * _GIB, "v5e": 16 * _GIB, "v5p": 95 * _GIB, "v6e": 32 * _GIB, "tpu7x": 96 * _GIB}
_COMPILERS = {"tpu": "libtpu", "gpu": "jax_cuda13_plugin"}


@dataclass(frozen=True)
class Target:
    """`name` as it was asked for, and its platform; `capacity_bytes` is a device's memory, None where that is the host's."""

    name: str
    platform: str
    capacity_bytes: int | None
    shape: str

    def devices(self) -> list[Any]:
        """The devices, absent ones but for the CPU's. ValueError where the compiler is not installed."""
        import jax
        from jax.experimental import topologies

        if self.platform == "cpu":
            return jax.devices("cpu")[: int(self.shape)]
        package = _COMPILERS[self.platform]
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"target {self.name!r} wants the package {package}; pip install -e '.[fit]' brings it")
        if self.platform == "gpu":
            text, _ = _CARDS[self.name.partition(":")[0]]
            asked = dict(platform="cuda", topology_name="", target_config=text, topology=f"1x1x{self.shape}")
        else:
            # There is no chip to ask for, and another process may have the library open for the same purpose.
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
            os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
            generation = self.name.partition(":")[0]
            asked_for = {"chips_per_host_bounds": (1, 1, 1)} if set(self.shape) <= set("1x") else {}
            asked_for |= {"chip_config_name": "megacore"} if generation == "v4" else {}
            asked = dict(platform="tpu", topology_name=f"{generation}:{self.shape}", **asked_for)
        return list(topologies.get_topology_desc(**asked).devices)

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        """What the compiler is told: there is no card to try alternatives on."""
        return {"xla_gpu_autotune_level": 0} if self.platform == "gpu" else None


def parse_target(text: str) -> Target:
    """A target by its spelling: "h100:8" cards, "v5p:4x4x4" chips, "cpu". ValueError for another."""
    name, _, shape = text.partition(":")
    if name == "cpu" and (not shape or shape.isdecimal()):
        return Target(text, "cpu", None, shape or "1")
    if name in _CARDS and re.fullmatch(r"[1-9]\d*", shape or "1"):
        return Target(text, "gpu", _CARDS[name][1], shape or "1")
    if name in _CHIPS and re.fullmatch(r"\d+x\d+(x\d+)?", shape):
        return Target(text, "tpu", _CHIPS[name], shape)
    known = ", ".join([*(f"{card}:COUNT" for card in _CARDS), *(f"{chip}:AxB or AxBxC" for chip in _CHIPS), "cpu"])
    raise ValueError(f"target {text!r} is unknown; wanted one of {known}")
