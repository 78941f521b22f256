"""`report.html`: a run on one page, made from the files of its directory. It needs no network and
runs no script."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from research.files import read_json, write_text
from research.training.metrics import Row, read_rows
from research.training.page import diff_table, facts_table, page, sample_card, tile
from research.training.plot import curve_svg
from research.training.progress import clock_time, short_number
from research.training.samples import read_samples

# the entry of config.json that names the checkpoint, or the directory of the run, this one starts
# from
PARENT = "init"
SAMPLES_OPEN = 3  # samples shown unfolded, the last ones
SPEEDS = (  # (name in a row, title, unit, factor from the row's unit)
    ("tokens_per_second", "Throughput", "tokens per second", 1.0),
    ("mfu", "Model FLOP utilisation", "percent of the published peak", 100.0),
    ("memory_bytes", "Device memory", "GiB at the peak, fullest device", 2.0**-30),
)
KNOWN = (
    "step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "memory_bytes",
    "seconds", "tokens", "nonfinite", "eval/loss", "eval/bits_per_byte", "eval/gzip_bits_per_byte",
)  # fmt: skip


def write_report(workdir: str | os.PathLike) -> Path:
    """Write `report.html` from what the run directory holds so far, and return its path.

    Files that are missing leave out their section; a directory without `metrics.jsonl` is a
    ValueError.
    """
    folder = Path(workdir)
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        raise ValueError(
            f"{folder} has no metrics.jsonl with rows; pass the --workdir of a training run"
        )
    config = _read(folder / "config.json")
    provenance = _read(folder / "provenance.json")
    sections = [
        (
            "",
            f'<div class="tiles">{"".join(headline(rows, config, provenance))}</div>{_warning(rows)}',
        ),
        (
            "Predicted and measured",
            facts_table(predicted_and_measured(_read(folder / "fit.json"), rows)),
        ),
        ("Curves", f'<div class="charts">{"".join(charts(rows))}</div>'),
        ("Samples", _samples(folder / "samples.txt")),
        ("Changes from the parent run", _changes(folder, config)),
        ("Configuration", facts_table(flatten(config))),
        ("Provenance", facts_table(_origin(provenance))),
    ]
    target = folder / "report.html"
    write_text(target, page(folder.resolve().name, _subtitle(config, provenance), sections))
    return target


def headline(
    rows: Sequence[Row], config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Iterable[str]:
    """The tiles at the top: how far, how good, how fast."""
    training = [row for row in rows if "loss" in row]
    steps = flatten(config).get("train.steps")
    if training:
        last = training[-1]
        done = f"{last['step']:,}" + (
            f" of {steps:,}" if isinstance(steps, int) and steps != last["step"] else ""
        )
        tokens = f"{short_number(last['tokens'])} tokens" if last.get("tokens") else ""
        yield tile("steps", done, tokens)
        yield tile("training loss", _shown(last["loss"]), "nats per token, last step")
    for row in [row for row in rows if row.get("eval/loss") is not None][-1:]:
        yield tile(
            "held-out loss", _shown(row["eval/loss"]), f"nats per token, step {row['step']:,}"
        )
    yield from _bits_tile(rows)
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
    if isinstance(provenance.get("parameters"), int):
        yield tile(
            "parameters", short_number(provenance["parameters"]), f"{provenance['parameters']:,}"
        )


def charts(rows: Sequence[Row]) -> Iterable[str]:
    """One figure for each quantity that the rows have; what this file does not know by name comes
    last."""
    steps = (
        0.0,
        float(max(row["step"] for row in rows)) or 1.0,
    )  # every figure shows the same steps
    loss = {"training": _line(rows, "loss"), "held out": _line(rows, "eval/loss")}
    look = {"smooth": ["training"], "points": ["held out"]}
    yield _figure("Loss", "nats per token", loss, steps, **look)
    yield _figure(
        "Loss on logarithmic axes",
        "a power law is a straight line",
        loss,
        None,
        log_x=True,
        log_y=True,
        **look,
    )
    gzip = [row["eval/gzip_bits_per_byte"] for row in rows if row.get("eval/gzip_bits_per_byte")]
    marks = {"gzip -9": gzip[-1]} if gzip else {}
    bits = {"model": _line(rows, "eval/bits_per_byte")}
    yield _figure(
        "Bits per byte", "held out, lower is better", bits, steps, points=["model"], marks=marks
    )
    yield _figure(
        "Learning rate", "", {"learning rate": _line(rows, "learning_rate")}, steps, from_zero=True
    )
    norm = _line(rows, "grad_norm")
    yield _figure(
        "Gradient norm",
        "before clipping",
        {"norm": norm},
        steps,
        smooth=["norm"],
        log_y=_spans(norm[1], 30),
    )
    for name, title, note, factor in SPEEDS:
        line = _line(rows, name)
        scaled = {title: (line[0], [value and value * factor for value in line[1]])}
        yield _figure(title, note, scaled, steps, smooth=[title], from_zero=True)
    for name in dict.fromkeys(name for row in rows for name in row if name not in KNOWN):
        dots = [name] if name.startswith("eval/") else []
        yield _figure(name, "", {name: _line(rows, name)}, steps, points=dots, smooth=[name])


def predicted_and_measured(fit: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """What `research.fit` said of the run before it began beside what was measured: a device's
    memory at the peak, and the least time of a step beside the median one. Nothing for a run
    without a prediction."""
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
    timed = [row for row in rows if row.get("tokens_per_second") and row.get("tokens")]
    speeds = [
        row["tokens_per_second"] * row["step"] / row["tokens"] for row in timed
    ]  # steps a second
    time = (
        f"{1 / median(speeds):.4g} s measured at the median" if speeds else "no step was measured"
    )
    if bound and speeds:
        time += f", of which the bound is {bound * median(speeds):.1%}"
    least = (
        f"{bound:.4g} s at least" if bound else "no bound, for no peak of this device is published"
    )
    return {
        "memory of a device": f"{predicted / 2**30:.2f} GiB predicted for {target}; {memory}",
        "time of a step": f"{least}; {time}",
    }


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names; a list stays a value."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, part in value.items():
        flat.update(flatten(part, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _line(rows: Sequence[Row], name: str) -> tuple[list[float], list[float | None]]:
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [
        value if isinstance(value, int | float) else None for _, value in found
    ]


def _spans(values: Sequence[float | None], ratio: float) -> bool:
    positive = [value for value in values if value and value > 0]
    return bool(positive) and max(positive) > ratio * min(positive)


def _figure(
    title: str, note: str, lines: Mapping[str, Any], steps: tuple[float, float] | None, **look: Any
) -> str:
    """A figure over the given steps, "" where no line has a number."""
    lines = {name: line for name, line in lines.items() if any(y is not None for y in line[1])}
    if not lines:
        return ""
    svg = curve_svg(lines, title=title, x_range=steps, **look)
    return f"<figure><figcaption>{escape(title)} <small>{escape(note)}</small></figcaption>{svg}</figure>"


def _bits_tile(rows: Sequence[Row]) -> Iterable[str]:
    measured = [row for row in rows if row.get("eval/bits_per_byte") is not None]
    if not measured:
        return
    bits, gzip = measured[-1]["eval/bits_per_byte"], measured[-1].get("eval/gzip_bits_per_byte")
    if gzip:
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
    return (
        "not finite" if value is None else f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
    )


def _warning(rows: Sequence[Row]) -> str:
    odd = [row for row in rows if "nonfinite" in row]
    if not odd:
        return ""
    first = ", ".join(f"{name} was {value}" for name, value in odd[0]["nonfinite"].items())
    count = "1 row has" if len(odd) == 1 else f"{len(odd):,} rows have"
    return f'<p class="warning">{count} values that are not finite. At step {odd[0]["step"]:,} {escape(first)}.</p>'


def _samples(path: Path) -> str:
    cards = [sample_card(*sample) for sample in reversed(read_samples(path))]
    older = cards[SAMPLES_OPEN:]
    fold = (
        f"<details><summary>{len(older)} earlier samples</summary>{''.join(older)}</details>"
        if older
        else ""
    )
    return "".join(cards[:SAMPLES_OPEN]) + fold


def _changes(folder: Path, config: Mapping[str, Any]) -> str:
    """A table of differing fields, or a line that says why there is none; "" for a run without a
    parent."""
    flat = flatten(config)
    parent = flat.get(PARENT)
    if not parent or not isinstance(parent, str):
        return ""
    places = [Path(parent), folder.parent / parent]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        return f"<p>Started from <code>{escape(parent)}</code>, which has no config.json here.</p>"
    before = read_json(found / "config.json")
    if not isinstance(before, dict) or not isinstance(
        before.get("model"), dict
    ):  # Hugging Face's, not a run's
        return f"<p>Started from <code>{escape(parent)}</code>, which is no run.</p>"
    return f"<p>Parent: <code>{escape(parent)}</code></p>" + diff_table(flatten(before), flat)


def _origin(provenance: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten(provenance)
    if isinstance(flat.get("command"), list):
        flat["command"] = shlex.join(map(str, flat["command"]))
    return flat


def _subtitle(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    flat = flatten(provenance)
    parts = [str(flat.get("started", "")).replace("T", " ").replace("+00:00", " UTC")]
    if flat.get("devices.kind"):
        parts.append(f"{flat.get('devices.count', 1)} × {flat['devices.kind']}")
    if flat.get("git.commit"):
        parts.append(
            f"commit {flat['git.commit'][:10]}" + (" with changes" if flat.get("git.dirty") else "")
        )
    return " · ".join(str(part) for part in parts if part)
