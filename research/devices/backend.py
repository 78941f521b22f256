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


def card_kind() -> str:
    """The name of the mesh's device or, without a mesh, of this machine's first GPU; "" where there
    is neither."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.device_kind
    return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else ""


def card_capability() -> tuple[int, int] | None:
    """CUDA's compute capability of `card_kind`; None for other devices and unknown cards."""
    kind = card_kind()
    known = capability(kind)
    if known is None and jax.default_backend() == "gpu" and jax.devices()[0].device_kind == kind:
        major, minor = jax.devices()[0].compute_capability.split(".")
        return int(major), int(minor)
    return known


def before_triton() -> str | None:
    """The name of the card, if Triton makes no code for it: it wants compute capability 8.0."""
    compute_capability = card_capability()
    return card_kind() if compute_capability is not None and compute_capability < (8, 0) else None


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
