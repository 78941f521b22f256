"""The picture of a fit: it says what the fit says, at its true sizes, and can run nothing."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.fit.page import BY_WIDTH, render, write_page
from research.fit.pictures import (
    LETTER,
    NARROW,
    WIDTH,
    memory_svg,
    mesh_svg,
    roofline_svg,
    short_seconds,
)
from research.fit.report import Fit
from research.parallel.axes import MESH_AXES, RULES, merge_rules
from tests.fit.fits import GIB, fit_json

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
SVG = "{http://www.w3.org/2000/svg}"
FITS = [
    fit_json(),
    fit_json(target="v5e:4x4", capacity=4 * GIB),
    fit_json(target="cpu", capacity=None),
]


def rects(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{SVG}rect"))


def titled(svg: str) -> dict[str, float]:
    """Widths of the bars that have a title, by its first words."""
    return {bar[0].text.split(":")[0]: float(bar.get("width")) for bar in rects(svg) if len(bar)}


def test_the_page_says_what_the_fits_say():
    text = render(FITS, RULES)
    for words in (
        "Fits 2 of 3 targets",
        "does not fit: 6.00 GiB over",
        "10.00 of 95.00 GiB",
        "fsdp:16 tensor:4",
        "1.25 s",
        "1.050 x",
    ):
        assert words in text, words
    assert "<h1>It fits</h1>" in render(FITS[:1], RULES) and "<h1>It does not fit</h1>" in render(
        FITS[1:2], RULES
    )


def test_the_page_loads_and_runs_nothing():
    text = render([fit_json(target=HOSTILE, notes=[HOSTILE])], RULES)
    tags = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    reader.feed(text)
    assert {"svg", "rect", "table"} <= {tag for tag, _ in tags} and not {
        "script",
        "img",
        "link",
    } & {tag for tag, _ in tags}
    assert (
        not [tag for tag in tags if {"src", "href"} & tag[1].keys()]
        and "@import" not in text
        and "url(" not in text
    )
    assert text.count("&lt;script&gt;") > 3 and "default-src 'none'" in text


@given(
    *(st.integers(0, 200 * GIB) for _ in range(5)), st.one_of(st.none(), st.integers(1, 200 * GIB))
)
@settings(max_examples=30, deadline=None)
def test_bars_are_as_long_as_their_bytes(
    params, frozen, optimizer, gradients, temporaries, capacity
):
    sizes = dict(
        params=params,
        frozen=frozen,
        optimizer=optimizer,
        gradients=gradients,
        temporaries=temporaries,
    )
    fit = fit_json(**sizes, capacity=capacity)
    longest = max(sum(sizes.values()), capacity or 0, 1)
    # Widths are written with one decimal.
    for (_, width), size in zip(titled(memory_svg([fit])).items(), sizes.values(), strict=True):
        assert width == pytest.approx(size / longest * WIDTH, abs=0.051)
    starts = [float(bar.get("x")) for bar in rects(memory_svg([fit])) if len(bar)]
    assert starts[4] == pytest.approx(
        (sum(sizes.values()) - temporaries) / longest * WIDTH, abs=0.051
    )  # one after another
    outlined = [bar for bar in rects(memory_svg([fit])) if bar.get("stroke")]
    assert bool(outlined) == (capacity is not None and sum(sizes.values()) > capacity)


def test_the_share_of_a_device_is_what_the_rules_make_of_the_mesh():
    mesh = dict.fromkeys(MESH_AXES, 1) | {"data": 2, "fsdp": 4, "context": 2, "tensor": 8}
    svg = mesh_svg(mesh, RULES)
    # The matrix is split by fsdp and tensor, the batch by data and fsdp, and its length by context.
    assert "1 / 32 on a device" in svg and "1 / 16 on a device" in svg and "128 devices" in svg
    assert "whole on every device" in mesh_svg(mesh, merge_rules({"embed": (), "mlp": ()}))
    ElementTree.fromstring(svg)
    ElementTree.fromstring(mesh_svg(dict.fromkeys(MESH_AXES, 1), RULES))


def test_the_binding_resource_is_marked():
    svg = roofline_svg({"compute": 0.5, "memory": 1e-4, "network": 1.0}, "network")
    assert "1 s, binds" in svg and "500 ms<" in svg and "100 µs<" in svg
    widths = [float(bar.get("width")) for bar in rects(svg)]
    assert widths[0] == widths[2] / 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.25, "1.25 s"), (0.0314, "31.4 ms"), (99.99, "100 s"), (2e-7, "0.2 µs"), (1234, "1,234 s")],
)
def test_seconds_have_three_digits(seconds, text):
    assert short_seconds(seconds) == text


def test_a_file_that_cannot_be_written_is_the_users(tmp_path):
    write_page([Fit.from_json(FITS[0])], tmp_path / "fit.html", RULES)
    assert (tmp_path / "fit.html").read_text() == render(FITS[:1], RULES)
    with pytest.raises(ValueError, match="--html=.*choose another"):
        write_page([], tmp_path / "none" / "fit.html", RULES)


@pytest.mark.parametrize("width", [NARROW, WIDTH])
@pytest.mark.parametrize("target", ["v5p:4x4x4", "v5p:8x16x16@2"])
def test_the_letters_of_the_memory_picture_have_room_at_the_size_of_the_pages(target, width):
    picture = ElementTree.fromstring(memory_svg([fit_json(target=target, capacity=4 * GIB)], width))
    assert picture.get("width") == str(width)  # so a letter is as large as it says it is
    lines: dict[str, float] = {}
    for text in picture.iter(f"{SVG}text"):
        words = "".join(text.itertext())
        lines[text.get("y")] = lines.get(text.get("y"), 0) + LETTER * len(words)
    assert len(lines) > 3 and max(lines.values()) <= width, lines


def test_a_narrow_window_has_a_picture_of_its_own():
    text = render(FITS, RULES)
    assert BY_WIDTH in text and text.count('aria-label="memory of a device"') == 2
    assert f'viewBox="0 0 {NARROW} ' in text and f'viewBox="0 0 {WIDTH} ' in text
