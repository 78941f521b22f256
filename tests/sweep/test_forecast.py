"""What a sweep says that its cells take, and the command that it gives for each."""

import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from research.command import Stop
from research.fit.report import Fit
from research.run.resolve import from_config
from research.sweep import forecast
from research.sweep.cells import Resolver
from research.sweep.forecast import Forecast, dry_run
from research.sweep.ledger import Ledger
from research.sweep.running import load_config, plan_sweep
from tests.configs import ROOT
from tests.fit.fits import fit_json

ABLATIONS = sorted(path.stem for path in (ROOT / "configs" / "ablations").glob("*.py"))
FOUR_CELLS = f"{ROOT}/configs/ablations/depth_width.py:smoke"  # two shapes, two seeds


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A function that plans the sweep of a config file: (ledger, plan, cells). No data are read."""
    monkeypatch.setattr(Resolver, "_prints", lambda *_: {"data": "", "tokenizer": ""})

    def plan(spelling, **changes):
        ledger, config = Ledger(tmp_path / "sweep"), load_config(spelling)
        config.update_from_flattened_dict(changes)
        return ledger, *plan_sweep(ledger, spelling, config)

    return plan


@pytest.fixture
def rate(monkeypatch):
    """A machine that multiplies at 1 MFLOP/s and whose free memory nobody tells."""
    monkeypatch.setattr(forecast, "cpu_rate", lambda: 1e6)
    monkeypatch.setattr("research.fit.at_hand.free_bytes", lambda device: None)


def seconds(line):
    *hours, minutes, rest = line.split("at least ")[1].split(" ")[0].strip(",;").split(":")
    return int(hours[0] if hours else 0) * 3600 + int(minutes) * 60 + int(rest)


def test_a_cell_takes_its_products_at_the_rate_of_this_machine(planned, rate, capsys):
    ledger, plan, cells = planned(FOUR_CELLS)
    first, *_, last = plan.cells
    ledger.cell(last).mkdir(parents=True)
    ledger.finish(last, {"cell": last, "state": "done"})
    dry_run(ledger, plan, cells, Forecast(price_per_hour=36.0))
    lines = capsys.readouterr().out.splitlines()
    assert seconds(lines[1]) == round(plan.cells[first]["flops"] / 1e6)
    left = sum(entry["flops"] for key, entry in plan.cells.items() if key != last)
    assert lines[-1].startswith("4 cells of 4 runs, 3 to run: ")
    assert seconds(lines[-1]) == round(left / 1e6)
    assert lines[-1].endswith(f"on this machine, cost at least {left / 1e6 / 100:,.2f}")


def test_frozen_weights_have_no_gradients_that_take_time(planned, rate):
    ledger, plan, cells = planned(f"{ROOT}/configs/ablations/lora_rank.py:smoke")
    [*_, key] = plan.cells
    need = Forecast().need(cells[key].config)
    assert need.seconds == pytest.approx(plan.cells[key]["flops"] / 1e6 * 2 / 3)


def test_a_step_on_a_target_takes_its_roofline_and_seeds_share_a_compile(
    planned, monkeypatch, capsys
):
    asked = []

    def answer(experiment, target):
        asked.append((experiment.model.layers, target))
        short = {"capacity": 2**30} if experiment.model.layers == 1 else {}
        return Fit.from_json(fit_json(**short))  # 1.25 s a step, 10 GiB of a device

    monkeypatch.setattr(forecast, "answer", answer)
    monkeypatch.setattr("research.fit.targets.Target.refuse_without_compiler", lambda _: None)
    dry_run(*planned(FOUR_CELLS), Forecast("h100:2x8", 4.5))
    lines = capsys.readouterr().out.splitlines()
    assert asked == [(2, "h100:2x8"), (1, "h100:2x8")]
    # 8 steps of 1.25 s on 16 cards at 4.50 an hour.
    assert "at least 0:10, cost at least 0.20; fits: 10.00 GiB of 95.00 GiB" in lines[1]
    assert lines[4].endswith("; WARNING: does not fit: 10.00 GiB of 1.00 GiB")
    assert lines[-1].endswith("at least 0:40 one after another on h100:2x8, cost at least 0.80")


def here(monkeypatch, *found):
    """A machine with an accelerator, of which JAX says this."""
    monkeypatch.setattr(forecast, "runs_on_cpu", lambda: False)
    monkeypatch.setattr(forecast, "jax_devices", lambda environment: found)


def test_without_a_target_the_card_of_this_machine_is_asked(planned, monkeypatch, capsys):
    cards = {"platform": "gpu", "kind": "NVIDIA L4", "count": 2, "memory": 2**30}
    here(monkeypatch, cards, "")
    dry_run(*planned(FOUR_CELLS), Forecast())
    lines = capsys.readouterr().out.splitlines()
    # Of float32 products no rate of a card is published.
    assert "GiB of each NVIDIA L4, 1.0 GiB are free" in lines[1] and "at least" not in lines[1]
    assert lines[-2].endswith("on this machine, NVIDIA L4")
    ledger, plan, cells = planned(FOUR_CELLS, **{"precision.compute": "bfloat16"})
    key = next(iter(plan.cells))
    one = Forecast().need(cells[key].config)
    assert one.seconds == pytest.approx(plan.cells[key]["flops"] / 121e12)
    two = {**cells[key].config, "mesh": "fsdp:2"}
    assert Forecast().need(two).seconds == pytest.approx(one.seconds / 2)


def test_a_card_too_small_for_a_cell_is_told(planned, monkeypatch):
    small = {"platform": "gpu", "kind": "NVIDIA L4", "count": 1, "memory": 2**20}
    here(monkeypatch, small, "")
    _, plan, cells = planned(FOUR_CELLS)
    need = Forecast().need(next(iter(cells.values())).config)
    assert need.memory.startswith("WARNING: needs about") and "will most likely not" in need.memory


@pytest.mark.parametrize(
    ("found", "failure", "words"),
    [({}, "no such driver", "(no such driver)"), ({"platform": "cpu"}, "", "(only its CPU)")],
)
def test_an_accelerator_that_jax_does_not_find_is_told(
    planned, rate, monkeypatch, capsys, found, failure, words
):
    here(monkeypatch, found, failure)
    dry_run(*planned(FOUR_CELLS), Forecast())
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("WARNING: JAX does not find the accelerator") and words in first
    assert last.endswith("on this machine")


@pytest.mark.parametrize("error", [ValueError("no such mesh\nmore"), Stop(1, "it crashed")])
def test_a_cell_that_cannot_be_compiled_leaves_the_others_their_answer(
    planned, rate, monkeypatch, capsys, error
):
    def answer(experiment, target):
        if experiment.model.layers == 1:
            raise error
        # No peak of a CPU is published.
        return Fit.from_json(fit_json(roofline=dict.fromkeys(["compute", "memory", "network"])))

    monkeypatch.setattr(forecast, "answer", answer)
    dry_run(*planned(FOUR_CELLS), Forecast("cpu"))
    lines = capsys.readouterr().out.splitlines()
    warned = [line for line in lines if "WARNING: no estimate: " + str(error)[:6] in line]
    assert len(warned) == 2 and "at least" not in warned[0]
    assert "fits: " in lines[1] and lines[-1] == (
        "not in these times: 2 cells, of which no time is known"
    )


def test_of_epochs_no_time_is_known(planned, rate, capsys):
    dry_run(*planned(FOUR_CELLS, **{"train.epochs": 1}), Forecast())
    assert "not in these times: 4 cells" in capsys.readouterr().out


def test_a_target_whose_compiler_is_missing_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install '.\\[fit\\]'"):
        Forecast("h100:1")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("name", ABLATIONS)
def test_the_command_of_a_cell_makes_its_config(name, planned, monkeypatch):
    ledger, plan, cells = planned(f"{ROOT}/configs/ablations/{name}.py:smoke")
    for key in list(plan.cells)[len(plan.cells) // 2 :]:  # those of one seed, which is set too
        program, module, what, *words, folder = shlex.split(
            forecast.train_command(ledger, plan, key)
        )
        assert (program, module, what) == ("python", "-m", "research.train")
        assert folder == f"--workdir={ledger.cell(key)}/run"
        values = flags.FlagValues()
        flag = config_flags.DEFINE_config_file("config", flag_values=values)
        monkeypatch.setattr("sys.argv", ["train", *words])  # where the flag finds its overrides
        values(sys.argv)
        assert from_config(flag.value).to_json() == cells[key].config
