"""The backend that a program is for, and how the CPU's is kept from fusing what should stand apart."""

import jax
from jax import lax


def platform() -> str:
    """The platform that the program is for: that of the mesh's devices, present or not, else the default backend's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def barrier(arrays):
    """`arrays`, which XLA's CPU backend will not fuse or fold across; as they are on accelerators."""
    return lax.optimization_barrier(arrays) if platform() == "cpu" else arrays
