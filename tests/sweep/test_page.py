"""The page of a sweep: what it shows, and that it needs nothing from elsewhere."""

import math
import re
import time

import pytest

from research.sweep.answer import findings
from research.sweep.grid import Grid
from research.sweep.page import render
from research.sweep.text import markdown
from research.training.plot import curve_svg
from tests.sweep.plans import plan, records

EVIL = "<script>alert(1)</script>|"


def grid(factors, seeds=6, value=None) -> Grid:
    names = list(factors)
    points: list[dict[str, str]] = [{}]
    for name in names:
        points = [{**point, name: level} for point in points for level in factors[name]]
    made = plan(factors, seeds, points)
    value = value or (lambda levels, seed: 3 + len(levels[names[0]]) + seed / 100)
    return Grid(made, records(made, value))


def test_a_page_has_every_run_and_loads_nothing():
    one = grid({"a": ["x", "yy"], "b": ["u", "v", "w"]})
    text = render("name", one, findings(one))
    assert "<script" not in text and not re.search(r'(src|href)="(?!cells/)', text)
    assert text.count("/run/report.html") == 36
    for words in ("a yy is worse than the baseline", "eval/loss: a x b", "How this was computed"):
        assert words in text


def test_names_are_escaped_in_page_and_table():
    one = grid({EVIL: ["x", EVIL]}, value=lambda levels, seed: None if seed else 3.0)
    found = findings(one)
    assert "<script" not in render(EVIL, one, found)
    rows = [line for line in markdown("s", one, found).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 3  # of findings, failures and runs


@pytest.mark.parametrize(
    "value",
    [
        lambda levels, seed: None,
        lambda levels, seed: math.nan,
        lambda levels, seed: 3.0,
        lambda levels, seed: 3.0 if levels["a"] == "x" else math.nan,
    ],
    ids=["all diverged", "all failed", "all equal", "only the baseline"],
)
def test_whatever_became_of_the_runs_there_is_a_page(value):
    one = grid({"a": ["x", "y"], "b": ["u", "v"]}, value=value)
    assert "nan" not in render("name", one, findings(one)).lower().replace("nan or inf", "")


def test_two_hundred_cells_take_seconds():
    one = grid({"a": list("pqrst"), "b": list("uvwxy")}, seeds=8)
    begun = time.monotonic()
    found = findings(one)
    assert len(render("name", one, found)) + len(markdown("name", one, found)) > 50_000
    assert time.monotonic() - begun < 10


def test_a_band_is_drawn_and_widens_the_axis():
    line = {"a": ([0, 1, 2], [1.0, 2.0, 3.0])}
    plain = curve_svg(line)
    banded = curve_svg(line, bands={"a": ([0, 1, 2], [0.0, 1.0, math.nan], [2.0, 9.0, 4.0])})
    assert "<polygon" not in plain and banded.count("<polygon") == 1
    # Two whole places, there and back.
    assert len(re.search(r'polygon points="([^"]*)"', banded)[1].split()) == 4
    assert ">8</text>" in banded and ">8</text>" not in plain
