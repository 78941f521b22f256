"""The report: whole offline, unable to run what it shows, and its curves well-formed whatever the
values."""

import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.files import write_json
from research.training import curves
from research.training.page import sample_card
from research.training.plot import curve_svg
from research.training.report import write_report
from research.training.samples import Sample, append_sample

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
# XML has no way to write control characters and unassigned ones; names come from code, not from
# models.
NAMES = st.text(st.characters(exclude_categories=["C"]), max_size=5)
# Beyond 1e30 the width of an axis could overflow; no metric is there.
VALUES = st.one_of(
    st.none(), st.floats(-1e30, 1e30), st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
)


def write_run(folder, rows, **files):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, value in files.items():
        write_json(folder / f"{name}.json", value)
    return folder


def training_rows(count=30):
    return [
        {"step": s, "loss": 5 / s, "learning_rate": 1e-3, "grad_norm": 1.0}
        | {"tokens_per_second": 120.0 + s % 3, "seconds": s, "tokens": 64 * s}
        for s in range(1, count + 1)
    ]


class Reader(HTMLParser):
    """Tags with their attributes, and the text outside styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        self._open.pop()

    def handle_data(self, data):
        if "style" not in self._open:
            self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    rows = [
        *training_rows(),
        {"step": 30, "eval/loss": 1.0, "eval/bits_per_byte": 1.5, "eval/gzip_bits_per_byte": 1.9},
    ]
    text = write_report(write_run(tmp_path, rows, config={"train": {"steps": 30}})).read_text()
    reader = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {
        tag for tag, _ in reader.tags
    }
    assert not [
        attributes
        for _, attributes in reader.tags
        if {"src", "href", "xlink:href", "onload"} & attributes.keys()
    ]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_hostile_text_is_shown_and_not_run(tmp_path):
    folder = write_run(
        tmp_path / "run",
        [*training_rows(), {"step": 30, HOSTILE: 1.0, "nonfinite": {HOSTILE: HOSTILE}}],
        config={"a": {HOSTILE: HOSTILE}, "init": HOSTILE},
        provenance={"command": [HOSTILE], "started": HOSTILE},
    )
    append_sample(folder / "samples.txt", Sample(1, HOSTILE, HOSTILE))
    text = write_report(folder).read_text()
    reader = Reader(text)
    assert "script" not in {tag for tag, _ in reader.tags} and "img" not in {
        tag for tag, _ in reader.tags
    }
    assert not [
        name for _, attributes in reader.tags for name in attributes if name.startswith("on")
    ]
    assert (
        reader.text.count(HOSTILE) >= 8
    )  # metric name twice, warning twice, config, parent, provenance, sample


MARKUP = st.one_of(st.text(), st.text("<>&;#x27/!-ab'\" \n"))


@given(MARKUP, MARKUP)
def test_a_sample_is_read_back_from_the_page_as_it_was(prompt, text):
    assert Reader(sample_card(3, prompt, text)).text == f"step 3{prompt}{text}"


def test_the_headline_compares_with_gzip(tmp_path):
    for bits, words in ((1.536, "20.0% below gzip"), (2.304, "20.0% above gzip")):
        rows = [
            *training_rows(),
            {"step": 30, "eval/bits_per_byte": bits, "eval/gzip_bits_per_byte": 1.92},
        ]
        text = Reader(write_report(write_run(tmp_path, rows)).read_text()).text
        assert words in text and f"{bits:.4g}" in text


def test_the_headline_has_the_last_loss_the_median_speed_the_time_and_the_parameters(tmp_path):
    provenance = {"parameters": 8_030_261_248, "devices": {"kind": "TPU v5 lite", "count": 8}}
    run = write_run(
        tmp_path, training_rows(), config={"train": {"steps": 400}}, provenance=provenance
    )
    text = Reader(write_report(run).read_text()).text
    shown = (
        "30 of 400",
        "1.92k tokens",
        "0.1667",
        "tokens/s121median",
        "0:30",
        "8.03B",
        "8,030,261,248",
        "8 × TPU v5 lite",
    )
    assert [words for words in shown if words not in text] == []


@pytest.mark.parametrize(("last", "drawn"), [(0.1, True), (-1e-6, False), (0.0, False)])
def test_a_loss_that_is_not_positive_has_no_logarithmic_chart(last, drawn, tmp_path):
    rows = [*training_rows(), {"step": 31, "loss": last}]
    text = write_report(write_run(tmp_path, rows)).read_text()
    assert ("Loss on logarithmic axes" in text) == drawn


def test_a_metric_of_ones_own_gets_a_figure(tmp_path):
    plain = write_report(write_run(tmp_path, training_rows())).read_text().count("<figure")
    rows = [row | {"moe/load_balance": 1.1} for row in training_rows()]
    text = write_report(write_run(tmp_path, rows)).read_text()
    assert text.count("<figure") == plain + 1 and "moe/load_balance" in text


def test_a_metric_that_is_also_held_out_has_both_in_one_figure(tmp_path):
    plain = write_report(write_run(tmp_path, training_rows())).read_text().count("<figure")
    rows = [row | {"reward": 1.0} for row in training_rows()] + [{"step": 30, "eval/reward": 0.5}]
    text = write_report(write_run(tmp_path, rows)).read_text()
    assert text.count("<figure") == plain + 1 and "eval/reward" not in text


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ((1.0, 0.4), (15.0, 0.0), "rose from 1 to 15 while exact_match fell from 0.4 to 0: the"),
        ((1.0, 0.4), (2.0, 0.9), ""),
        ((1.0, 0.4), (0.5, 0.1), ""),
    ],
)
def test_a_reward_that_is_won_without_one_of_its_parts_is_told(before, after, told, tmp_path):
    names = ("eval/reward", "eval/reward_exact_match")
    measured = [{"step": s, **dict(zip(names, x))} for s, x in ((0, before), (30, after))]
    rows = [measured[0], *training_rows(), measured[1]]
    text = Reader(write_report(write_run(tmp_path, rows)).read_text()).text
    assert told in text and ("won without" in text) == bool(told)


def test_rows_that_are_not_finite_are_told(tmp_path):
    rows = [*training_rows(), {"step": 31, "loss": None, "nonfinite": {"loss": "nan"}}]
    text = Reader(write_report(write_run(tmp_path, rows)).read_text()).text
    assert "1 row has values that are not finite. At step 31 loss was nan." in text


def test_only_what_differs_from_the_parent_is_listed(tmp_path):
    write_run(
        tmp_path / "base", training_rows(), config={"seed": 1, "model": {"layers": 4, "width": 64}}
    )
    config = {"seed": 1, "model": {"layers": 8, "width": 64}, "init": "base"}
    text = write_report(write_run(tmp_path / "next", training_rows(), config=config)).read_text()
    assert re.findall(r"<del>(.*?)</del>", text) == ["4"] and re.findall(
        r"<ins>(.*?)</ins>", text
    ) == ["8", "base"]
    gone = write_run(tmp_path / "other", training_rows(), config={"init": "gone"})
    assert "Changes from the parent run" not in write_report(gone).read_text()
    alone = write_run(tmp_path / "alone", training_rows(), config={"init": ""})
    text = write_report(alone).read_text()
    assert "parent" not in text and "Started from" not in text
    write_run(
        tmp_path / "published", training_rows(), config={"model_type": "llama", "hidden_size": 64}
    )  # Hugging Face's
    tuned = write_run(tmp_path / "tuned", training_rows(), config={"seed": 1, "init": "published"})
    text = write_report(tuned).read_text()
    # A checkpoint has no settings to compare, and then there is no heading over nothing.
    assert "hidden_size" not in text and "Changes from the parent run" not in text


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"tune": {"method": "lora"}, "lora": {"rank": 16}}, "lora of rank 16"),
        (
            {"tune": {"method": "lora"}, "lora": {"rank": 8, "decompose": True}}
            | {"quantize": {"format": "nf4"}},
            "dora of rank 8 on nf4",
        ),
        ({"tune": {"method": "prefix"}, "quantize": {"format": ""}}, "prefix"),
        ({"tune": {"method": "full"}}, None),
        ({}, None),
    ],
)
def test_a_run_of_adapters_shows_what_is_trained_and_how(tmp_path, config, shown):
    provenance = {"parameters": 134_515_008, "trained_parameters": 4_884_690}
    run = write_run(tmp_path / "run", training_rows(), config=config, provenance=provenance)
    text = Reader(write_report(run).read_text()).text
    assert "134,515,008" in text
    assert (shown is None) == ("trained parameters4.88M" not in text)
    assert shown is None or f"4.88M{shown}" in text


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--workdir"):
        write_report(tmp_path)


# Curves


@settings(deadline=None, max_examples=60)
@given(
    lines=st.dictionaries(
        NAMES,
        st.lists(st.tuples(st.integers(0, 10**6), VALUES), min_size=1, max_size=20),
        max_size=3,
    ),
    log_x=st.booleans(),
    log_y=st.booleans(),
    marks=st.dictionaries(NAMES, st.floats(-1e30, 1e30), max_size=2),
)
def test_an_svg_is_well_formed_and_stays_in_its_frame(lines, log_x, log_y, marks):
    names = list(lines)
    lines = {
        name: tuple(zip(*sorted(pairs, key=lambda pair: pair[0]))) for name, pairs in lines.items()
    }
    text = curve_svg(
        lines,
        log_x=log_x,
        log_y=log_y,
        marks=marks,
        points=names[:1],
        smooth=names[1:],
        width=300,
        height=200,
    )
    svg = ElementTree.fromstring(text)
    for element in svg.iter():
        for name, limit in (
            ("x", 300),
            ("y", 200),
            ("x1", 300),
            ("x2", 300),
            ("y1", 200),
            ("y2", 200),
            ("cx", 300),
            ("cy", 200),
        ):
            assert 0 <= float(element.get(name, 0)) <= limit
        for pair in element.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 54 <= x <= 300 - 16 and 16 <= y <= 200 - 28  # inside the margins


def test_names_in_a_plot_are_text():
    line = ([1, 2], [1.0, 2.0])
    svg = curve_svg({HOSTILE: line, "other": line}, title=HOSTILE, marks={HOSTILE: 1.0})
    root = ElementTree.fromstring(svg)
    assert {element.tag.split("}")[1] for element in root.iter()} <= {
        "svg",
        "style",
        "text",
        "tspan",
        "line",
        "polyline",
        "circle",
        "g",
        "title",
        "rect",
    }
    assert (
        "".join(root.itertext()).count(HOSTILE) == 6
    )  # mark, legend, and at both steps the words and their tooltip


def test_every_place_of_the_plot_has_a_reading():
    svg = curve_svg({"loss": (range(1, 1001), [1 / x for x in range(1, 1001)])}, width=560)
    strips = [
        (float(a), float(b))
        for a, b in re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', svg)
    ]
    assert strips[0][0] == 54 and sum(width for _, width in strips) == pytest.approx(
        560 - 54 - 16, abs=0.1 * len(strips)
    )
    # Each strip is rounded to a tenth of a pixel, so neighbours may miss each other by that much.
    assert all(
        a + width == pytest.approx(b, abs=0.11) for (a, width), (b, _) in zip(strips, strips[1:])
    )


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_linear_ticks_are_few_even_and_inside(low, width):
    high = low + max(width, 1e-6 * abs(low))
    ticks = curves.linear_ticks(low, high)
    slack = 1e-6 * (
        high - low
    )  # a tick on the very edge may be off by the rounding of its decimals
    assert 2 <= len(ticks) <= 7 and all(low - slack <= tick <= high + slack for tick in ticks)
    gaps = [b - a for a, b in zip(ticks, ticks[1:])]
    assert min(gaps) == pytest.approx(max(gaps), rel=1e-3)


@given(st.floats(1e-12, 1e12), st.floats(1.001, 1e12))
def test_log_ticks_are_few_and_inside(low, ratio):
    ticks = curves.log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 10 and ticks == sorted(ticks)
    assert all(low * 0.99 <= tick <= low * ratio * 1.01 for tick in ticks)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_extremes_and_the_order(ys, count):
    groups = curves.thin(
        (list(map(float, range(len(ys)))), ys), count, 0.0, float(len(ys)), log=False
    )
    assert len(groups) <= max(count, 1) and [x for x, *_ in groups] == sorted(x for x, *_ in groups)
    assert min(low for *_, low, _ in groups) == min(ys) and max(high for *_, high in groups) == max(
        ys
    )
    # The mean of equal floats can be off by a last bit.
    assert all(
        low - 1e-9 * abs(low) <= mean <= high + 1e-9 * abs(high) for _, mean, low, high in groups
    )


@given(st.lists(st.floats(-1e6, 1e6), max_size=300))
def test_smoothing_stays_between_the_extremes_and_changes_no_count(ys):
    mean = curves.running_mean(ys)
    assert len(mean) == len(ys)
    assert all(min(ys) <= y <= max(ys) for y in mean)


def test_smoothing_follows_a_loss_and_flattens_a_spike():
    falling = [5 * step**-0.3 for step in range(1, 1001)]
    # Windows a quarter as wide as the way back: a power of -0.3 bends by less than 2% over them.
    assert max(abs(a / b - 1) for a, b in zip(curves.running_mean(falling), falling)) < 0.02
    spiked = curves.running_mean([1.0] * 500 + [101.0] + [1.0] * 500)
    assert max(spiked) < 10 and spiked[0] == spiked[-1] == pytest.approx(1.0)


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=30).map(sorted),
    st.integers(-10, 10**6 + 10),
)
def test_the_nearest_value_is_nearest(xs, x):
    found, _ = curves.nearest((xs, xs), x)
    assert abs(found - x) == min(abs(value - x) for value in xs)


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (0.0015, "0.0015"),
        (3e-5, "3e-5"),
        (250, "250"),
        (1200, "1.2k"),
        (-3e6, "-3M"),
        (1e21, "1e21"),
    ],
)
def test_tick_texts(value, text):
    assert curves.tick_text(value) == text
