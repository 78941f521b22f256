"""The model card of a run, what it knows of energy, and the reliability diagram of its report."""

import json

import pytest

from research.devices.energy import Meter
from research.evals.card import model_card
from research.evals.card_facts import cost, energy, measured_joules, run_seconds
from research.training.reliability_chart import reliability_chart

H100 = {"kind": "NVIDIA H100 80GB HBM3", "count": 2}
EVENTS = [
    {"time": 100.0, "event": "begin", "step": 0, "started": 90.0},
    {"time": 110.0, "event": "step", "step": 1, "waited": 0.0, "joules": {"cpu": 10.0}},
    {"time": 120.0, "event": "step", "step": 2, "waited": 0.0, "joules": {"cpu": 30.0}},
    {"time": 220.0, "event": "begin", "step": 2, "started": 200.0},
    {"time": 230.0, "event": "step", "step": 3, "waited": 0.0, "joules": {"cpu": 5.0}},
]


@pytest.fixture
def run(tmp_path):
    """A run directory with two evaluations, one of them set by the config."""
    config = {"model": {"kind": "decoder", "layers": 2}, "init": "hf:some/model@main"}
    config |= {"objective": {"name": "causal_lm"}, "data": {"source": "shakespeare"}}
    config["evals"] = {"safe": {"kind": "refusal"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    provenance = {"git": {"commit": "abc", "dirty": True}, "devices": {"kind": "cpu", "count": 1}}
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    (tmp_path / "evals").mkdir()
    half = {"value": 0.5, "low": 0.1, "high": 0.9, "n": 10, "interval": "wilson"}
    kept = {"main": "acc", "metrics": {"acc": half, "none": {**half, "value": None}}}
    (tmp_path / "evals/boolq.json").write_text(json.dumps({**kept, "notes": ["a caveat"]}))
    kept["slices"] = {"kind": {"a": {"acc": half}}}
    (tmp_path / "evals/safe.json").write_text(json.dumps(kept))
    return tmp_path


def test_a_card_says_what_is_known_and_that_the_rest_is_not(run):
    card = model_card(run)
    for line in (
        "- licence: public domain (plays and poems of Shakespeare and Milton)",
        "- git commit: abc, with changes that were not committed",
        "Data: `boolq` (licence: unknown).",
        "Data: `contrasts` (licence: that of this package).",
        "A caveat.",
        "| acc | 0.5 | 0.1 to 0.9 | 10 |",
        "| a | 0.5 | 0.1 to 0.9 | 10 |",
        "- calibration was not measured (`--evals=calibration`)",
        "- intended use: unknown: nobody has said it",
        "- energy: unknown: no counter of energy could be read",
    ):
        assert line in card
    assert "safety was not measured" not in card  # by its kind, whatever its name


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no config.json; pass the --workdir of a training"):
        model_card(tmp_path)


def test_the_hub_reads_the_metadata(run):
    hub = pytest.importorskip("huggingface_hub", reason="the extra [hub]")
    data = hub.ModelCard(model_card(run, "apache-2.0", ("en",))).data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en"], "some/model")
    assert data.pipeline_tag == "text-generation"
    found = {(one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results}
    assert found == {("boolq", "acc", 0.5), ("contrasts", "acc", 0.5)}
    assert hub.ModelCard(model_card(run)).data.license == "unknown"


def test_joules_of_all_processes_add_up_and_the_time_between_is_no_work():
    assert measured_joules(EVENTS) == {"cpu": 35.0}
    assert run_seconds(EVENTS, []) == pytest.approx(60.0)
    assert run_seconds([], [{"seconds": 7.0}]) == 7.0 and run_seconds([], []) is None


@pytest.mark.parametrize(
    "events, seconds, devices, fit, said",
    [
        (EVENTS, 60.0, H100, {}, "measured: 9.722e-06 kWh by RAPL (cpu)"),
        ([], 3600.0, H100, {}, "estimated: 1.4 kWh, which is 2 x 700 W of rated power over 1 h"),
        ([], None, H100, {"step_seconds_bound": 36.0}, "1.4 kWh, which is 2 x 700 W of rated"),
        ([], 3600.0, {"kind": "cpu"}, {}, "unknown: no counter of energy could be read"),
        ([], None, H100, {}, "unknown: no counter"),
    ],
)
def test_energy_is_measured_estimated_or_unknown(events, seconds, devices, fit, said):
    assert said in energy(events, seconds, devices, fit, 100)


def test_a_cost_is_known_by_its_price_alone():
    assert cost(3600.0, H100, 2.5).startswith("5, which is 2 x 1 h at 2.5 an hour")
    assert cost(3600.0, H100, None).startswith("unknown") and cost(None, H100, 1.0)[:7] == "unknown"


def test_counters_of_energy_are_added_up_over_their_end(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")
        (tmp_path / name / "energy_uj").write_text("9000000")
    cards = iter([{"0": 5.0}, {"0": 9.0}, {"0": 9.5}])
    meter = Meter(tmp_path, lambda: next(cards))
    (tmp_path / "intel-rapl:0/energy_uj").write_text("1000000")  # by way of 10
    assert meter.joules() == {"cpu": 2.0, "gpu": 4.0}
    (tmp_path / "intel-rapl:1/energy_uj").write_text("9500000")
    assert meter.joules() == {"cpu": 2.5, "gpu": 4.5}
    assert Meter(tmp_path / "none", dict).joules() == {}


def test_a_diagram_has_a_dot_for_each_bin_of_items_with_a_confidence():
    items = [{"metrics": {"confidence": c, "acc": a}} for c, a in ((0.95, 1), (0.91, 0), (0.2, 0))]
    figure = reliability_chart([*items, {"metrics": {"acc": 1}}, {"metrics": {"confidence": None}}])
    assert figure.count("<circle") == 2
    assert "2 items, confidence 0.930, right 0.500" in figure
    assert reliability_chart([{"metrics": {"acc": 1.0}}]) == ""
