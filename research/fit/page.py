"""Fits on one page: it needs no network and runs no script."""

import os
from collections.abc import Mapping, Sequence
from html import escape

from research.files import write_text
from research.fit.pictures import GIB, NARROW, memory_svg, mesh_svg, roofline_svg, short_seconds
from research.fit.report import Fit
from research.parallel.axes import AxisRules
from research.training.page import facts_table, page, tile
from research.training.progress import short_number

FOOTER = (
    "Compiled for hardware that is not here. Bytes are the compiler's; seconds are what published "
    "peaks allow at best."
)
# Pixels of the window at which the wide picture's letters would be two thirds of their size.
BY_WIDTH = (
    "<style>@media(max-width:800px){.wide{display:none}}"
    "@media(min-width:801px){.narrow{display:none}}</style>"
)


def write_page(fits: Sequence[Fit], file: str | os.PathLike, rules: AxisRules) -> None:
    """Draws fits, in their order, into an HTML file. `rules` are those of the experiment, for what
    the mesh splits. ValueError where the file cannot be written."""
    try:
        write_text(file, render([fit.to_json() for fit in fits], rules))
    except OSError as error:
        raise ValueError(
            f"--html={os.fspath(file)} cannot be written: {error}; choose another file"
        ) from None


def render(fits: Sequence[Mapping], rules: AxisRules) -> str:
    """The page of fits as `Fit.to_json` gives them."""
    # Drawn for both: a picture for a desk that is shrunk to a telephone cannot be read.
    both = f'<div class="wide">{memory_svg(fits)}</div>'
    both += f'<div class="narrow">{memory_svg(fits, NARROW)}</div>'
    memory = f"{BY_WIDTH}<figure><figcaption>Memory of a device</figcaption>{both}</figure>"
    sections = [("", f'<div style="margin-top:24px">{memory}</div>')]
    for fit in fits:
        tiles = f'<div class="tiles" style="margin:0 0 16px">{"".join(_tiles(fit))}</div>'
        pictures = _mesh(fit, rules) + _roofline(fit)
        charts = f'<div class="charts" style="margin-bottom:16px">{pictures}</div>'
        sections.append((fit["target"], tiles + charts + facts_table(facts(fit))))
    return page(_headline(fits), ", ".join(fit["target"] for fit in fits), sections, FOOTER)


def _headline(fits: Sequence[Mapping]) -> str:
    count = sum(fit["fits"] for fit in fits)
    if len(fits) > 1:
        return f"Fits {count} of {len(fits)} targets"
    return "It fits" if count else "It does not fit"


def facts(fit: Mapping) -> dict[str, str]:
    """Rows of the table below the pictures, name to words; what is not known is left out."""
    rows = {}
    if fit.get("host_bytes"):
        rows["in host memory, for each device"] = _size(fit["host_bytes"])
    flops = fit.get("flops") or {}
    if flops.get("model"):
        rows["FLOPs of the model, a step over all devices"] = f"{flops['model']:.4g}"
    if flops.get("hardware"):
        rows["FLOPs executed, with what is computed again"] = f"{flops['hardware']:.4g}"
    for kind, size in (fit.get("collective_bytes") or {}).items():
        rows[f"{kind}, operands of a device"] = _size(size)
    if fit.get("collective_ratio"):
        moved, least = sum(fit["collective_bytes"].values()), fit["least_collective_bytes"]
        rows["collectives for the least"] = (
            f"{_size(moved)} for {_size(least)}, {fit['collective_ratio']:.3f} x"
        )
    if fit.get("memory_bytes"):
        rows["bytes that a device's memory moves"] = _size(fit["memory_bytes"])
    if fit.get("tokens"):
        rows["tokens a step"] = f"{fit['tokens']:,}"
    return rows | {f"note {number}": note for number, note in enumerate(fit.get("notes", []), 1)}


def _tiles(fit: Mapping):
    """The figures at the top of a target's section, as HTML; those that are not known are left
    out."""
    size = fit["device_bytes"]
    note = f"of {size['capacity'] / GIB:.2f}" if size["capacity"] else "of the machine's"
    words, mood = ("fits", "good") if fit["fits"] else ("does not fit", "bad")
    yield tile("GiB of a device", f"{size['total'] / GIB:.2f}", f"{note}, {words}", mood)
    if fit.get("step_seconds_bound"):
        yield tile(
            "a step at least", short_seconds(fit["step_seconds_bound"]), "a bound, not a promise"
        )
    if fit.get("tokens_per_second_bound"):
        yield tile(
            "tokens/s at most", short_number(fit["tokens_per_second_bound"]), "over all devices"
        )
    # Values are tested for truth: what is not known is None, and 0 would say nothing.
    if fit.get("mfu_bound"):
        yield tile("MFU at most", f"{fit['mfu_bound']:.1%}", "model FLOPs of the peak")
    if fit.get("recompute_ratio"):
        yield tile(
            "recomputation", f"{fit['recompute_ratio']:.3f} x", "executed, of 3 x the forward"
        )
    if fit.get("collective_ratio"):
        yield tile(
            "communication", f"{fit['collective_ratio']:.3f} x", "of the least for this mesh"
        )
    if fit.get("cost_per_billion_tokens"):
        yield tile("a billion tokens", f"{fit['cost_per_billion_tokens']:,.2f}", "cost at least")


def _mesh(fit: Mapping, rules: AxisRules) -> str:
    if not fit.get("mesh"):
        return ""
    named = " ".join(f"{name}:{size}" for name, size in fit["mesh"].items() if size > 1)
    return _figure(
        "Mesh",
        f"{named or 'one device'}; filled is what one device holds",
        mesh_svg(fit["mesh"], rules),
    )


def _roofline(fit: Mapping) -> str:
    times = {
        name: (fit.get("roofline") or {}).get(name) for name in ("compute", "memory", "network")
    }
    # A CPU has no published peaks, and a program that was given up has no traffic.
    if all(time is None for time in times.values()):
        return ""
    return _figure(
        "Roofline",
        "seconds of a step on each resource alone",
        roofline_svg(times, fit["roofline"].get("bound")),
    )


def _figure(title: str, note: str, svg: str) -> str:
    caption = f"{escape(title)} <small>{escape(note)}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _size(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:,.4g} {name}"
    return f"{size:,.4g} bytes"
