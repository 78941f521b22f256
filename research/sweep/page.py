"""`report.html` of a sweep: one page that needs no network and runs no script."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from research.sweep.answer import Finding, headline
from research.sweep.curves import seed_curve
from research.sweep.grid import Grid, Point
from research.sweep.pictures import heat_svg, interval_svg
from research.sweep.scaling import sentences
from research.sweep.text import FOOTER, HEAD, METHOD, cells, counts, failures, run_rows
from research.training.page import page, tile
from research.training.plot import curve_svg
from research.training.progress import short_number

LONG = ' class="long"'
MOST_LINES = 6  # of a figure of curves, as many as there are colours
WIDE = (
    "<style>.scroll{overflow-x:auto}.scroll table{min-width:720px}.wide{min-width:760px}"
    ".answer{background:var(--card);border:1px solid var(--edge);border-radius:10px;"
    "padding:12px 18px;margin:16px 0}.answer ul{margin:0;padding-left:20px}"
    ".answer li{margin:4px 0}"
    ".grid-table th{width:auto;white-space:nowrap}.grid-table td{white-space:nowrap}"
    ".grid-table td,.grid-table th{padding:4px 10px}"
    ".grid-table td.long{white-space:normal;min-width:300px}"
    ".better{color:var(--good);font-weight:600}.worse{color:var(--bad);font-weight:600}"
    "@media(max-width:800px){figure.big{overflow-x:auto}}"
    # Paper does not scroll: columns shrink instead.
    "@media print{.scroll,figure.big{overflow:visible}.scroll table,.wide{min-width:0}"
    ".grid-table td,.grid-table th{white-space:normal;padding:2px 4px;font-size:9px}}</style>"
)


def render(
    name: str, grid: Grid, found: Sequence[Finding], law: Mapping[str, Any] | None = None
) -> str:
    """The page of a sweep's records and findings, and of its scaling law where one was fitted."""
    sections = [("", f'{WIDE}<div class="tiles">{"".join(_tiles(grid, found))}</div>')]
    for number, metric in enumerate(dict.fromkeys(one.metric for one in found)):
        mine = [one for one in found if one.metric == metric]
        words = "".join(f"<li>{escape(line)}</li>" for line in headline(found, metric))
        # The first metric is the one that decides; the others have their figures alone.
        answer = "" if number else f'<div class="answer"><ul>{words}</ul></div>'
        better = grid.plan.metrics.get(metric, "")
        note = "level minus baseline with 95% interval, a dot a seed"
        note += f"; {better} is better" if better else ""
        figure = _figure(metric, note, f'<div class="wide">{interval_svg(mine)}</div>', "big")
        sections.append(("The answer" if not number else metric, answer + figure))
        table = _table(HEAD, [cells(one) for one in mine])
        sections.append(("", f"<details open><summary>the numbers</summary>{table}</details>"))
    sections += [
        ("Scaling law", _law(law) if law else ""),
        ("Every combination", _charts(_heat_maps(grid))),
        ("Curves", _charts(_curves(grid))),
        ("Runs that did not end well", _table(*failures(grid))),
        ("Runs", _runs(grid)),
        ("How this was computed", f"<p>{escape(METHOD)}</p>"),
    ]
    return page(name, f"{grid.plan.config} · {counts(grid)}", sections, FOOTER)


def _law(law: Mapping[str, Any]) -> str:
    """What the scaling law predicts, and its lines over sizes with the runs as dots."""
    words = "".join(f"<li>{escape(line)}</li>" for line in sentences(law))
    lines = {}
    for tokens, curve in law["curves"].items():
        runs = sorted((n, loss) for n, seen, loss in law["runs"] if seen == float(tokens))
        shown = f"{short_number(float(tokens))} tokens"
        lines[shown] = tuple(zip(*curve))
        # The running mean of dots at one size would be no measurement; the law is the line.
        lines[f"measured, {shown}"] = tuple(zip(*runs))
    points = [one for one in lines if one.startswith("measured")]
    svg = curve_svg(lines, title="loss by size", log_x=True, log_y=True, points=points)
    note = "loss by the weights that multiply a token; lines are the law without the largest size"
    return f'<div class="answer"><ul>{words}</ul></div>' + _figure("Scaling law", note, svg)


def _tiles(grid: Grid, found: Sequence[Finding]) -> Iterator[str]:
    main = next(iter(grid.plan.metrics))
    verdicts = [one.comparison.verdict for one in found if one.metric == main]
    records = list(grid.records.values())
    states = [record["state"] for record in records]
    stopped = states.count("stopped")
    bad = len(states) - states.count("done") - stopped
    words = f"of {len(grid.plan.cells)}, over {len(grid.plan.seeds)} seeds"
    yield tile("runs ended", f"{len(states)}", words)
    if bad:
        words = f"{states.count('diverged')} diverged, {states.count('failed')} failed"
        yield tile("did not end well", f"{bad}", words, "bad")
    if stopped:
        yield tile("stopped early", f"{stopped}", "by successive halving")
    yield tile("better", f"{verdicts.count('better')}", f"of {len(verdicts)} comparisons", "good")
    yield tile("worse", f"{verdicts.count('worse')}", "than the baseline", "bad")
    yield tile("no evidence", f"{verdicts.count('no evidence')}", "beyond what is detectable")
    more = sum(verdict.startswith("needs") for verdict in verdicts)
    if more:
        yield tile("more seeds needed", f"{more}", "for a verdict")
    flops = sum(record.get("flops") or 0 for record in records)
    hours = sum(record.get("seconds") or 0 for record in records) / 3600
    shown = short_number(flops) if flops < 1e15 else f"{flops:.2e}"
    yield tile("FLOPs of training", shown, "added over runs")
    yield tile("hours of training", f"{hours:.2f}", "added over runs")


def _heat_maps(grid: Grid) -> Iterator[str]:
    """A figure for each two factors of which most combinations were run."""
    names, metric = list(grid.plan.factors), next(iter(grid.plan.metrics))
    for (a, first), (b, second) in itertools.combinations(enumerate(names), 2):
        sums: dict[tuple[str, str], list[float]] = {}
        for point in grid.points:
            values = [grid.value(point, seed, metric) for seed in grid.plan.seeds]
            known = [value for value in values if value is not None]
            sums.setdefault((point[a], point[b]), []).extend(known)
        means = {place: sum(found) / len(found) for place, found in sums.items() if found}
        rows, columns = (_ascending(grid.plan.factors[name]) for name in (first, second))
        # One factor at a time fills a row and a column, which the intervals show better.
        if len(means) > len(rows) + len(columns) - 1:
            svg = heat_svg(rows, columns, means, grid.plan.metrics[metric])
            yield _figure(f"{metric}: {first} x {second}", "mean; the best is outlined", svg)


def _ascending(levels: Sequence[str]) -> Sequence[str]:
    """Levels that are numbers in their order, others as they are."""
    try:
        return sorted(levels, key=float)
    except ValueError:
        return levels


def _curves(grid: Grid) -> Iterator[str]:
    """Two figures for each factor and metric, on equal tokens and, where the levels' costs differ,
    on equal FLOPs; the other factors are at the baseline's levels."""
    for metric in grid.plan.metrics:
        for place, (name, levels) in enumerate(grid.plan.factors.items()):
            base = grid.baseline
            points = {level: (*base[:place], level, *base[place + 1 :]) for level in levels}
            yield _curve(grid, metric, name, points, "tokens")
            costs = {grid.record(one, grid.plan.seeds[0]).get("flops") for one in points.values()}
            if len(costs - {None}) > 1:
                yield _curve(grid, metric, name, points, "FLOPs")


def _curve(grid: Grid, metric: str, name: str, points: dict[str, Point], unit: str) -> str:
    curves = {level: seed_curve(grid, point, metric, unit) for level, point in points.items()}
    kept = {level: curve for level, curve in curves.items() if curve}
    shown = dict(list(kept.items())[:MOST_LINES])
    if not shown:
        return ""
    svg = curve_svg(
        {level: (curve.xs, curve.means) for level, curve in shown.items()},
        title=f"{metric} by {name}",
        bands={level: (one.xs, one.lows, one.highs) for level, one in shown.items()},
        log_x=unit == "FLOPs",
    )
    note = f"mean and range over seeds, by {unit}"
    if len(kept) > MOST_LINES:
        note += f"; {MOST_LINES} of {len(kept)} levels"
    return _figure(f"{metric} by {name}", note, svg)


def _runs(grid: Grid) -> str:
    """Every run, folded: its levels, the fields it changes, and what it came to."""
    head, rows = run_rows(grid)
    table = _table(head, rows, {key: f"cells/{key}/run/report.html" for key in grid.records})
    return f"<details><summary>{len(rows)} runs</summary>{table}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], links: dict[str, str] = {}) -> str:
    if not rows:
        return ""
    first = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = []
    for row in rows:
        texts = []
        for text in row:
            word = text.split(" ")[0] if text in ("better", "worse") else ""
            shown = f'<span class="{word}">{escape(text)}</span>' if word else escape(text)
            shown = f'<a href="{escape(links[text])}">{shown}</a>' if text in links else shown
            texts.append(f"<td{LONG * (len(text) > 60)}>{shown}</td>")
        lines.append(f"<tr>{''.join(texts)}</tr>")
    table = f'<table class="grid-table"><tr>{first}</tr>{"".join(lines)}</table>'
    return f'<div class="scroll">{table}</div>'


def _charts(figures: Iterator[str]) -> str:
    joined = "".join(figures)
    return f'<div class="charts">{joined}</div>' if joined else ""


def _figure(title: str, note: str, svg: str, kind: str = "") -> str:
    caption = f"<figcaption>{escape(title)} <small>{escape(note)}</small></figcaption>"
    return f'<figure class="{kind}">{caption}{svg}</figure>'
