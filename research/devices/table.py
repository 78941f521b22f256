"""The one table of hardware, and what is asked of it by a device's name.

A device or a type that is not listed has no peak, None: a wrong peak gives a utilisation that looks
right. Facts of a whole generation (`fast_types`, `capability`, `torus`) are also known of variants
without a row, such as a part of a card ("NVIDIA H100 80GB HBM3 MIG 1g.10gb").

>>> peak_flops("NVIDIA L4", "int8"), sorted(fast_types("NVIDIA L4")), capability("NVIDIA L4")
(242500000000000.0, ['float8', 'int8'], (8, 9))
"""

import re

from research.devices.device import Device
from research.devices.nvidia import CARDS
from research.devices.tpu import TPUS

# By `device_kind`, and by the names of `research.fit`'s targets.
DEVICES: dict[str, Device] = {
    name: device for device in (*TPUS, *CARDS) for name in (device.kind, *device.aliases)
}
TARGETS: dict[str, Device] = {device.target: device for device in CARDS + TPUS if device.target}


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """Peak FLOP/s of one `jax.Device` by its `device_kind` for products in `dtype`, or None where
    it is not published.

    `dtype` is a numpy name; every float8 type counts as "float8". "float32" is always None: which
    unit runs such a product depends on its precision ("tfloat32" names NVIDIA's 19-bit one, and a
    TPU makes bfloat16 passes).
    """
    # No guess from a variant here: a part of a card has a part of its peak.
    if device_kind not in DEVICES:
        return None
    return DEVICES[device_kind].flops.get("float8" if dtype.startswith("float8") else dtype)


def memory_bandwidth(device_kind: str) -> float | None:
    """Peak bytes/s between one `jax.Device` and its memory, or None where it is not published."""
    return DEVICES[device_kind].memory_bandwidth if device_kind in DEVICES else None


def fast_types(device_kind: str) -> frozenset[str]:
    """ "int8" and "float8", as far as the device multiplies them faster than 16-bit types.

    None is known to have a 4-bit product that keeps a scale for each group: those formats are
    widened everywhere.
    """
    device = _row(device_kind)
    return frozenset() if device is None else device.fast_types


def capability(device_kind: str) -> tuple[int, int] | None:
    """CUDA's compute capability of an NVIDIA card; None for other devices and unknown cards."""
    device = _row(device_kind)
    return None if device is None else device.capability


def torus(device_kind: str) -> int | None:
    """Axes of the torus that a TPU's slices are cut from, three where nothing is known of a TPU;
    None for other devices."""
    device = _row(device_kind)
    if device is None:
        return 3 if device_kind.startswith("TPU") else None
    return device.torus


def _row(device_kind: str) -> Device | None:
    """The device's own row, or one of a card that it is a variant of."""
    if device_kind in DEVICES:
        return DEVICES[device_kind]
    for device in DEVICES.values():
        # "NVIDIA L4" begins the name of an L4's parts but not that of an L40.
        if any(re.match(re.escape(name) + r"(?![^ -])", device_kind) for name in device.variants):
            return device
    return None
