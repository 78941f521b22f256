"""Energy that this machine has used, as its processors and cards count it themselves."""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path

# Intel's and AMD's running average power limit, a counter for each processor socket.
_RAPL = Path("/sys/class/powercap")
_UJ, _MJ = 1e-6, 1e-3  # joules in the units of the counters


class Meter:
    """Adds up joules from the moment it is made: of processors (RAPL, where Linux lets this user
    read it) and of all NVIDIA cards of the machine (NVML, since Volta). What runs beside is counted
    too; another machine of a job is not.
    """

    def __init__(self, rapl: Path = _RAPL, nvml: Callable[[], Mapping[str, float]] | None = None):
        self._rapl, self._nvml = rapl, nvml or _cards
        self._last = self._read()
        # In one order, so that two runs write the same line.
        parts = {name[:3] for name in self._last}
        self._joules: dict[str, float] = {part: 0.0 for part in ("cpu", "gpu") if part in parts}

    def joules(self) -> dict[str, float]:
        """{"cpu": joules, "gpu": joules} since the meter was made, of those that can be read; {}
        for none."""
        if not self._joules:
            return {}
        now = self._read()
        for name, (count, most) in now.items():
            if name in self._last:
                # A counter starts again from 0 at its end; one without an end was reset.
                gone = count - self._last[name][0]
                self._joules[name[:3]] += gone if gone >= 0 else max(gone + most, 0.0)
        self._last = now
        return {part: round(value, 3) for part, value in self._joules.items()}

    def _read(self) -> dict[str, tuple[float, float]]:
        """{counter: (joules, joules at which it starts again, or 0)}."""
        found = {}
        # Sockets alone: their parts, such as intel-rapl:0:1, are counted in them.
        for socket in sorted(self._rapl.glob("intel-rapl:[0-9]*")):
            if socket.name.count(":") > 1:
                continue
            try:
                count = float((socket / "energy_uj").read_text())
                most = float((socket / "max_energy_range_uj").read_text())
            except (OSError, ValueError):  # the kernel keeps it from ordinary users
                continue
            found[f"cpu {socket.name}"] = (count * _UJ, most * _UJ)
        return {**found, **{f"gpu {card}": (joules, 0.0) for card, joules in self._nvml().items()}}


def _cards() -> dict[str, float]:
    """Joules of each NVIDIA card since its driver was loaded, by its number; {} without a driver or
    for older cards. Calls nvmlDeviceGetTotalEnergyConsumption of the driver's own library."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    count, found = ctypes.c_uint(), {}
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return {}
    for number in range(count.value):
        card, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(card)):
            continue
        # Each function returns 0 where it succeeds.
        if not nvml.nvmlDeviceGetTotalEnergyConsumption(card, ctypes.byref(millijoules)):
            found[str(number)] = millijoules.value * _MJ
    return found
