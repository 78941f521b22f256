"""The evaluations of a run in its report: numbers with intervals, groups of items, the worst items.

They are read from `evals/`, where training and `research.evaluate` keep them
(`research.evals.results`).
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from research.files import read_json
from research.training.reliability_chart import reliability_chart
from research.training.whiskers import measured, shown, whisker_table

FOLDER = "evals"
WORST = 10  # items shown of each evaluation
_TEXT = 1200  # characters of a text


def evaluations(folder: Path) -> str:
    """The section of all evaluations in a run's directory as HTML, "" without one."""
    return "".join(
        _evaluation(name, summary, _items(folder / FOLDER / f"{name}.jsonl"))
        for name, summary in read_summaries(folder).items()
    )


def read_summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """What `evals/NAME.json` of a run says, by name: "metrics", "slices", "main", "step" and so on.
    A file that is no such summary is left out."""
    found = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            summary = read_json(path)
        except ValueError:
            continue
        if isinstance(summary, dict) and isinstance(summary.get("metrics"), dict):
            found[path.stem] = summary
    return found


def mood(difference: Mapping[str, Any], lower_is_better: bool) -> str:
    """ "good" or "bad" for a difference whose interval leaves out 0, else ""."""
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "good" if (low > 0) != lower_is_better else "bad"


def _evaluation(name: str, summary: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> str:
    facts = [f"step {summary['step']:,}"] if summary.get("step") is not None else []
    facts += [f"{len(items):,} items"] if items else []
    lower = bool(summary.get("lower_is_better"))
    main = str(summary.get("main", ""))
    if main:
        facts.append(f"{main}: {'lower' if lower else 'higher'} is better")
    head = f"<h3>{escape(name)} <small>{escape(' · '.join(facts))}</small></h3>"
    head += "".join(f"<p>{escape(str(note))}</p>" for note in summary.get("notes", ()))
    metrics = summary["metrics"]
    rows = [measured((metric,), one) for metric, one in metrics.items()]
    # Shares have one scale; other numbers have none that they share.
    parts = [head, whisker_table(("metric",), rows, scale=(0.0, 1.0))]
    apart = {metric: one["difference"] for metric, one in metrics.items() if "difference" in one}
    if apart:
        # Only of the main number it is known which direction is good.
        rows = [
            measured((metric,), one, mood(one, lower) if metric == main else "")
            for metric, one in apart.items()
        ]
        against = escape(str(summary.get("against", "another model")))
        parts.append(f"<p>Difference from <code>{against}</code>, paired by item</p>")
        parts.append(whisker_table(("metric",), rows, zero=True))
    for column, groups in summary.get("slices", {}).items():
        rows = [measured((group,), one[main]) for group, one in groups.items() if main in one]
        if rows:
            parts.append(f"<p>{escape(main)} by {escape(column)}</p>")
            parts.append(whisker_table((column,), rows))
    return "".join([*parts, reliability_chart(items), _worst(items, main, lower)])


def _worst(items: Sequence[Mapping[str, Any]], main: str, lower: bool) -> str:
    """The items with the worst main number, folded; "" where items have no texts."""
    known = [
        (one["metrics"][main], one)
        for one in items
        if one.get("texts") and one.get("metrics", {}).get(main) is not None
    ]
    # By the number alone, the first of equal ones first.
    known = sorted(known, key=lambda pair: pair[0], reverse=lower)[:WORST]
    if not known:
        return ""
    cards = []
    for value, item in known:
        texts = "".join(
            f'<pre><span class="prompt">{escape(label)}</span> {escape(_cut(str(text)))}</pre>'
            for label, text in item["texts"].items()
        )
        head = f"<small>{escape(str(item.get('id')))} · {escape(main)} {shown(value)}</small>"
        cards.append(f'<div class="sample">{head}{texts}</div>')
    title = f"the {len(cards)} worst items" if len(cards) > 1 else "the worst item"
    return f"<details><summary>{title}</summary>{''.join(cards)}</details>"


def _cut(text: str) -> str:
    # The end of a prompt is what the model goes on from.
    return text if len(text) <= _TEXT else f"… {text[-_TEXT:]}"


def _items(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
