"""What `research.interop.convert.convert` returns, as lines for the terminal."""

from collections.abc import Mapping
from typing import Any

from research.interop import beside

FEW = 3  # tensors that are not needed for one reason, at most, that are named one by one


def describe(certificate: dict[str, Any]) -> list[str]:
    """What `convert` returns as lines for the terminal: its notes, and the certificate if any."""
    lines = [f"note: {line}" for line in certificate["notes"]]
    if "round_trip" not in certificate:
        return lines
    trip, reference = certificate["round_trip"], certificate["reference"]
    lines += [_describe_round_trip(trip, certificate["target"])]
    lines += beside.lines(certificate["beside"])
    lines += unneeded(certificate["tensors"]["unused"])
    if reference:
        lines += [
            f"against {reference['implementation']}: logits differ by up to "
            f"{reference['largest_logit_difference']:.3g}, "
            f"KL {reference['mean_kl_nats']:.3g} nats, top-1 agrees on "
            f"{reference['top1_agreement']:.1%}"
        ]
    return lines


def unneeded(unused: Mapping[str, str]) -> list[str]:
    """A line for each tensor that is not needed, by name with its reason, or for all that share a
    reason where these are many."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in unused.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        if len(names) > FEW:
            names = [f"{len(names):,} tensors such as {names[0]}"]
        lines += [f"not needed: {name} ({reason})" for name in names]
    return lines


def _describe_round_trip(trip: dict[str, Any], target: dict[str, Any]) -> str:
    if "largest_error" not in trip:
        return f"{trip['bit_equal']} of {trip['tensors']} tensors come back bit by bit"
    # A loss that was asked for is no damage, and is not to read like it.
    what = "quantized" if target["quantized"] else "rounded"
    asked = f" as asked: {target['dtype']}" if target["dtype"] else ""
    return (
        f"{what}{asked}, {trip['root_mean_square_error']:.3g} rms, largest "
        f"{trip['largest_error']:.3g} of {trip['tensors'] - trip['bit_equal']} tensors; "
        f"{trip['bit_equal']} kept bit by bit"
    )
