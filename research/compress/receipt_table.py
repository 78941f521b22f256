"""A receipt of quantization as a table for a person."""

from collections.abc import Mapping
from typing import Any

# By field of a result, the heading of its column.
COLUMNS = {
    "bits": "bits a linear weight",
    "bits_whole": "of all weights",
    "perplexity": "perplexity",
    "nats": "nats a token",
    "mean_kl": "mean KL, nats",
    "kl_99": "99% of KL below",
    "flip_rate": "tokens flipped",
    "layer_error": "layer error",
}


def describe(receipt: Mapping[str, Any], markdown: bool = False) -> list[str]:
    """A receipt as lines: a table, of Markdown or in columns, and what was measured below it."""
    rows = _rows(receipt)
    lines = _as_markdown(rows) if markdown else _in_columns(rows)
    text = receipt["text"]
    measured_on = (
        f"{text['tokens']:,} held-out tokens of {text['source']} in windows of {text['window']}"
    )
    lines += ["", f"{measured_on}, computed in float32; {receipt['seconds']:.0f} s"]
    for name, drift in receipt["merge_drift"].items():
        moved = f"{drift['mean']:.3g} on average and {drift['largest']:.3g} at most"
        lines.append(f"merging the adapter into {name} moves logits by {moved}")
    return lines


def _rows(receipt: Mapping[str, Any]) -> list[list[str]]:
    """The heading, a row of the original, and one of each format."""
    original = receipt["original"]
    # The original is measured in float32 and has nothing to be compared with.
    first = {
        "bits": 32.0,
        "bits_whole": 32.0,
        "perplexity": original["perplexity"],
        "nats": original["nats"],
    }
    rows = [
        ["format", *COLUMNS.values()],
        ["float32", *(_cell(name, first.get(name)) for name in COLUMNS)],
    ]
    for name, result in receipt["results"].items():
        # Activations rounded to 8 bits as well.
        label = name + " x 8" * receipt["activations"]
        if receipt["method"] != "rtn":
            label += f", {receipt['method']}"
        rows.append([label, *(_cell(column, result[column]) for column in COLUMNS)])
    return rows


def _as_markdown(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def _in_columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        lines.append("  ".join(cells).rstrip())
    return lines


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column in ("flip_rate", "layer_error"):
        return f"{value:.2%}"
    return f"{value:.2f}" if column.startswith("bits") or column == "perplexity" else f"{value:.4f}"
