"""What a run directory says of energy, cost and time, for its model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from research.devices.table import DEVICES
from research.training.goodput import goodput

_JOULES = 3.6e6  # of a kilowatt-hour


def measured_joules(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Joules that the machine counted, by "cpu" and "gpu", over all processes that have run it; {}
    where none was read."""
    total: dict[str, float] = {}
    last: Mapping[str, float] = {}
    for event in [*events, {"event": "begin"}]:
        if event["event"] == "begin":  # each process counts from 0
            for part, joules in last.items():
                total[part] = total.get(part, 0.0) + joules
            last = {}
        last = event.get("joules", last)
    return total


def run_seconds(
    events: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> float | None:
    """The seconds that processes have worked on a run, without the time between them; None where
    neither events nor metrics tell."""
    if any(event["event"] == "begin" for event in events):
        found = goodput(events)
        return found.total - found.seconds["down"]
    return max((row.get("seconds") or 0.0 for row in rows), default=0.0) or None


def energy(
    events: Sequence[Mapping[str, Any]],
    seconds: float | None,
    devices: Mapping[str, Any],
    fit: Mapping[str, Any],
    steps: int | None,
) -> str:
    """A sentence on the energy of training: measured, estimated and said to be, or unknown."""
    joules = measured_joules(events)
    if joules:
        parts = " and ".join(
            f"{value / _JOULES:.4g} kWh by {'RAPL' if part == 'cpu' else 'NVML'} ({part})"
            for part, value in joules.items()
        )
        return f"measured: {parts}, on the machine of the first process, with all that ran beside"
    row = DEVICES.get(str(devices.get("kind")))
    bound = fit.get("step_seconds_bound")
    of = f"{seconds / 3600:.4g} h of the run" if seconds else ""
    if not seconds and bound and steps:
        seconds, of = bound * steps, f"{steps:,} steps of the least time that `research.fit` gives"
    if row is None or row.watts is None or not seconds:
        return (
            "unknown: no counter of energy could be read (RAPL, NVML), and no rated power is "
            f"known of {devices.get('kind', 'the device')!r}"
        )
    count = int(devices.get("count") or 1)
    return (
        f"estimated: {count * row.watts * seconds / _JOULES:.4g} kWh, which is {count} x "
        f"{row.watts:g} W of rated power over {of}; hosts and cooling are not in it"
    )


def cost(seconds: float | None, devices: Mapping[str, Any], price_per_hour: float | None) -> str:
    """A sentence on the cost of training."""
    if price_per_hour is None or not seconds:
        return "unknown: give --price_per_hour, of one device"
    count = int(devices.get("count") or 1)
    hours = seconds / 3600
    return (
        f"{price_per_hour * count * hours:.4g}, which is {count} x {hours:.4g} h at "
        f"{price_per_hour:g} an hour (the price given)"
    )
