"""Questions across sweeps: runs chosen by a condition on their configs and results, grouped by a
field.

    python -m research.sweep query "method=='qlora' and rank>=8" --by=data --workdir=sweeps
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from research.experiment.fields import nearest
from research.files import flatten, read_json
from research.sweep.ledger import Ledger

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
FACTS = ("cell", "state", "seed", "seconds", "flops")  # of a record
# A word that fields of several sections end in, or that is none of them, and what is meant by it.
MEANT = {"data": "data.source", "objective": "objective.name", "optimizer": "optimizer.name"}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The runs of all sweeps in a folder and below it, each its values by name: config fields by
    path, metrics, factors, `state`, `seed`, `cell`, `sweep`, `seconds` and `flops`. ValueError for
    a folder without a sweep."""
    plans = sorted(folder.rglob("sweep.json")) if folder.is_dir() else []
    if not plans:
        raise ValueError(f"{folder} holds no sweep, nor does a folder in it")
    found = []
    for plan in plans:
        ledger = Ledger(plan.parent)
        for key, record in ledger.records().items():
            config = read_json(ledger.cell(key) / "config.json")
            facts = {name: record.get(name) for name in FACTS} | {"sweep": plan.parent.name}
            levels = {name: _number(level) for name, level in record["levels"].items()}
            method = {"method": _method(config)}
            found.append(flatten(config) | record.get("metrics", {}) | method | levels | facts)
    return found


def select(found: Sequence[Mapping[str, Any]], condition: str) -> list[Mapping[str, Any]]:
    """The rows for which a condition holds: comparisons of names with values, joined by `and`, `or`
    and `not`, as in Python. A name may be the end of a config field's path: `rank` is `lora.rank`.

    ValueError for anything else, for a name that no row has, and for one that could be several.
    """
    if not condition.strip():
        return list(found)
    try:
        tree = ast.parse(condition.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{condition!r} is no condition: {error.msg}; {EXAMPLE}") from None
    known = {name for row in found for name in row}
    return [row for row in found if _holds(tree, row, known)]


EXAMPLE = "write one such as \"method=='qlora' and rank>=8\""


def _holds(node: ast.expr, row: Mapping[str, Any], known: set[str]) -> bool:
    if isinstance(node, ast.BoolOp):
        each = (_holds(value, row, known) for value in node.values)
        return all(each) if isinstance(node.op, ast.And) else any(each)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _holds(node.operand, row, known)
    if isinstance(node, ast.Compare):
        values = [_value(one, row, known) for one in (node.left, *node.comparators)]
        try:
            return all(OPERATORS[type(op)](a, b) for op, a, b in zip(node.ops, values, values[1:]))
        except (TypeError, KeyError):  # None, as of a metric that a failed run lacks, is no number
            return False
    return bool(_value(node, row, known))


def _value(node: ast.expr, row: Mapping[str, Any], known: set[str]) -> Any:
    if isinstance(node, ast.Name | ast.Attribute):
        return row.get(resolve(ast.unparse(node), known))
    try:
        return ast.literal_eval(node)
    except ValueError:
        # A name with a slash, such as eval/loss, reads as a division.
        words = ast.unparse(node).replace(" ", "")
        if isinstance(node, ast.BinOp) and words in known:
            return row.get(words)
        raise ValueError(f"{ast.unparse(node)!r} is no name and no value; {EXAMPLE}") from None


def resolve(name: str, known: set[str]) -> str:
    """The full name that is meant, of the fewest sections: `layers` is model.layers beside
    model.image.layers. ValueError for one that is unknown or could be several."""
    if name in known:
        return name
    meant = MEANT.get(name)
    if meant in known:
        return meant
    ends = sorted(one for one in known if one.endswith(("." + name, "/" + name)))
    fewest = min((one.count(".") for one in ends), default=0)
    ends = [one for one in ends if one.count(".") == fewest]
    if len(ends) > 1:
        raise ValueError(f"{name!r} could be {', '.join(ends)}; write one of these")
    if not ends:
        raise ValueError(f"no run has {name!r}; {nearest(name, dict.fromkeys(sorted(known)))}")
    return ends[0]


def table(found: Sequence[Mapping[str, Any]], by: str, metric: str) -> list[tuple[str, ...]]:
    """Rows of texts, the first one their names: for each value of the field `by` the number of
    runs, how many ended well, and mean, standard deviation and best of a metric. Without `by` a
    row for each sweep."""
    known = {name for row in found for name in row}
    field = resolve(by, known) if by else "sweep"
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in found:
        groups.setdefault(str(row.get(field)), []).append(row)
    lines = [(field, "runs", "done", f"mean {metric}", "deviation", "lowest", "hours")]
    for value, group in sorted(groups.items()):
        numbers = [row[metric] for row in group if row.get(metric) is not None]
        lines.append(
            (
                value,
                f"{len(group)}",
                f"{sum(row['state'] == 'done' for row in group)}",
                f"{mean(numbers):.5g}" if numbers else "",
                f"{stdev(numbers):.2g}" if len(numbers) > 1 else "",
                f"{min(numbers):.5g}" if numbers else "",
                f"{sum(row.get('seconds') or 0 for row in group) / 3600:.2f}",
            )
        )
    return lines


def answer(folder: Path, condition: str, by: str, metric: str) -> str:
    """The text that `query` prints: the runs that a condition chooses, or with `by` groups of
    them."""
    everything = rows(folder)
    chosen = select(everything, condition)
    if not chosen:
        return f"none of {len(everything)} runs"
    lines = table(chosen, by, metric)
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    shown = ["  ".join(text.ljust(w) for text, w in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([*shown, f"{len(chosen)} of {len(everything)} runs"])


def _number(level: str) -> Any:
    """A level as the number that it is, if it is one."""
    try:
        return ast.literal_eval(level)
    except (ValueError, SyntaxError):
        return level


def _method(config: Mapping[str, Any]) -> str:
    """The method of tuning as recipes name it: LoRA over NF4 is qlora, with magnitudes dora."""
    method = config.get("tune", {}).get("method", "")
    if method != "lora":
        return method
    if config["quantize"]["format"] == "nf4":
        return "qlora"
    return "dora" if config["lora"]["decompose"] else "lora"
