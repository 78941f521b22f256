"""The figures at the top of `report.html`: tiles, what was predicted, and a warning."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from research.training.metrics import Row
from research.training.page import tile
from research.training.progress import clock_time, short_number


def headline(
    rows: Sequence[Row], config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Iterable[str]:
    """The tiles at the top of a report as HTML: steps, losses, speed, time and parameters, each if
    the rows have it."""
    training = [row for row in rows if "loss" in row]
    # A report may be made of a run that is not over, or whose config is gone.
    steps = config.get("train", {}).get("steps")
    if training:
        last = training[-1]
        done = f"{last['step']:,}" + (
            f" of {steps:,}" if isinstance(steps, int) and steps != last["step"] else ""
        )
        tokens = f"{short_number(last['tokens'])} tokens" if last.get("tokens") else ""
        yield tile("steps", done, tokens)
        yield tile("training loss", _shown(last["loss"]), "nats per target, last step")
    for row in [row for row in rows if row.get("eval/loss") is not None][-1:]:
        yield tile(
            "held-out loss", _shown(row["eval/loss"]), f"nats per target, step {row['step']:,}"
        )
    yield from _bits_tile(rows)
    # The median, because the first steps and a shared machine leave outliers.
    speeds = [row["tokens_per_second"] for row in training if row.get("tokens_per_second")]
    if speeds:
        used = [row["mfu"] for row in training if row.get("mfu")]
        yield tile(
            "tokens/s",
            short_number(median(speeds)),
            f"median, MFU {median(used):.1%}" if used else "median",
        )
    seconds = max((row.get("seconds") or 0.0 for row in rows), default=0.0)
    if seconds:
        yield tile("time", clock_time(seconds), "with evaluation and compilation")
    yield from _parameter_tiles(config, provenance)


def predicted_and_measured(fit: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """The predictions of `research.fit` and the measurements of the run, as texts by name: the peak
    memory of a device, and the least and the median time of a step. {} without a prediction."""
    if not fit:
        return {}
    target, predicted, bound = (
        fit["target"],
        fit["device_bytes"]["total"],
        fit.get("step_seconds_bound"),
    )
    peaks = [row["memory_bytes"] for row in rows if row.get("memory_bytes")]
    memory = "not measured, for this backend does not tell it"
    if peaks:
        memory = f"{max(peaks) / 2**30:.2f} GiB measured, {max(peaks) / predicted:.1%} of that"
    # `tokens` is step * tokens of a step, so tokens_per_second * step / tokens is steps a second.
    timed = [row for row in rows if row.get("tokens_per_second") and row.get("tokens")]
    # In steps a second.
    speeds = [row["tokens_per_second"] * row["step"] / row["tokens"] for row in timed]
    time = (
        f"{1 / median(speeds):.4g} s measured at the median" if speeds else "no step was measured"
    )
    # Near 100% the step is as fast as the hardware allows; far below, something else holds it up.
    if bound and speeds:
        time += f", of which the bound is {bound * median(speeds):.1%}"
    # A bound needs published peaks, which there are of accelerators only.
    least = (
        f"{bound:.4g} s at least" if bound else "no bound, for no peak of this device is published"
    )
    return {
        "memory of a device": f"{predicted / 2**30:.2f} GiB predicted for {target}; {memory}",
        "time of a step": f"{least}; {time}",
    }


def warning(rows: Sequence[Row]) -> str:
    """A paragraph as HTML about values that were NaN or infinite; "" if all are finite."""
    odd = [row for row in rows if "nonfinite" in row]
    if not odd:
        return ""
    first = ", ".join(f"{name} was {value}" for name, value in odd[0]["nonfinite"].items())
    count = "1 row has" if len(odd) == 1 else f"{len(odd):,} rows have"
    words = f"{count} values that are not finite. At step {odd[0]['step']:,} {escape(first)}."
    return f'<p class="warning">{words}</p>'


def bought(rows: Sequence[Row]) -> str:
    """A paragraph as HTML where the held-out reward of a run rose while a part of its weighted sum
    lost half or more of what it was: the sum is then won without that part, as with a bonus on
    length. "" for any other run."""
    measured = [row for row in rows if row.get("eval/reward") is not None]
    first, last = (measured[0], measured[-1]) if measured else ({}, {})
    if not measured or last["eval/reward"] <= first["eval/reward"]:
        return ""
    lost = [
        f"{name.removeprefix('eval/reward_')} fell from {_shown(value)} to {_shown(last[name])}"
        for name, value in first.items()
        if name.startswith("eval/reward_") and value and (last.get(name) or 0.0) <= value / 2
    ]
    if not lost:
        return ""
    rise = f"{_shown(first['eval/reward'])} to {_shown(last['eval/reward'])}"
    words = f"The held-out reward rose from {rise} while {escape(' and '.join(lost))}"
    return f'<p class="warning">{words}: the sum is won without it.</p>'


def method(config: Mapping[str, Any]) -> str:
    """How a run trains adapters, such as "lora of rank 16 on nf4"; "" if it trains all
    parameters."""
    tune, lora = config.get("tune", {}), config.get("lora", {})
    words = tune.get("method", "full")
    if words == "full":
        return ""
    if words == "lora":
        words = f"{'dora' if lora.get('decompose') else 'lora'} of rank {lora.get('rank')}"
    codes = config.get("quantize", {}).get("format")
    return f"{words} on {codes}" if codes else words


def _parameter_tiles(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterable[str]:
    total, trained = provenance.get("parameters"), provenance.get("trained_parameters")
    # Adapters come on top of the parameters of the model, so they may even be more.
    if isinstance(trained, int) and method(config):
        yield tile("trained parameters", short_number(trained), method(config))
    if isinstance(total, int):
        yield tile("parameters", short_number(total), f"{total:,}")


def _bits_tile(rows: Sequence[Row]) -> Iterable[str]:
    measured = [row for row in rows if row.get("eval/bits_per_byte") is not None]
    if not measured:
        return
    bits, gzip = measured[-1]["eval/bits_per_byte"], measured[-1].get("eval/gzip_bits_per_byte")
    if gzip:
        # gzip is the bar: a model above it has learned less than repetition.
        side, mood = ("below", "good") if bits < gzip else ("above", "bad")
        yield tile(
            "bits per byte",
            _shown(bits),
            f"{abs(1 - bits / gzip):.1%} {side} gzip -9, {_shown(gzip)}",
            mood,
        )
    else:
        yield tile("bits per byte", _shown(bits), "held out")


def _shown(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
