"""The backend that a program is for, and how the CPU's is kept from fusing what should stand
apart."""

import jax
from jax import lax


def platform() -> str:
    """The platform that the program is for: that of the mesh's devices, present or not, else the
    default backend's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


# Of compute capability 7, for which Triton makes no code any more.
_BEFORE_AMPERE = (
    "Tesla V100",
    "Tesla T4",
    "Quadro RTX",
    "NVIDIA GeForce RTX 20",
    "NVIDIA TITAN RTX",
)


def before_triton() -> str | None:
    """The name of the card that the program is for, if Triton's kernels do not run on it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = "" if device is None else device.device_kind
    return kind if kind.startswith(_BEFORE_AMPERE) else None


def barrier(arrays):
    """`arrays`, which XLA's CPU backend will not fuse or fold across; as they are on
    accelerators."""
    return lax.optimization_barrier(arrays) if platform() == "cpu" else arrays
