"""The device that a program is for, present or not: what it multiplies, which kernels run on it,
and how the CPU's compiler is kept from fusing what should stand apart."""

import jax
import jax.numpy as jnp
from jax import lax

from research.devices.table import capability, fast_types


def platform() -> str:
    """ "tpu", "gpu" or "cpu": the platform of the mesh's devices, else the default backend's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def before_triton() -> str | None:
    """The name of the mesh's card, if Triton makes no code for it: it wants compute capability
    8.0."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = "" if device is None else device.device_kind
    compute_capability = capability(kind)
    return kind if compute_capability is not None and compute_capability < (8, 0) else None


def multiplies(dtype: jnp.dtype) -> bool:
    """Whether the device has a product of this 8-bit type that is worth quantizing activations
    for.

    A CPU counts as having both: neither is fast there, but it shows what accelerators compute.
    """
    # A mesh may be of devices that are not here, as where `research.fit` compiles for them.
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    if device.device_kind == "cpu":
        return True
    kind = "float8" if jnp.issubdtype(dtype, jnp.floating) else "int8"
    return kind in fast_types(device.device_kind)


def barrier(arrays):
    """`arrays` behind an optimization barrier on the CPU, so that its compiler does not fuse or
    fold across it; on accelerators `arrays` themselves."""
    return lax.optimization_barrier(arrays) if platform() == "cpu" else arrays
