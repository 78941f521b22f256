"""The benchmark of a card, on a machine without one: every work runs at its smallest size,
contenders take turns, and what fails or has no time is left out. Nothing is timed."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from research.bench import card, card_contender, card_profile
from research.bench.card_works import OURS, WORKS
from tests.configs import ROOT

pytestmark = pytest.mark.usefixtures("quick_commands")
SOME = ["qlora", "decode-1-nf4", "product-4096-back-int8", "grouped-back", "attention-8"]


def run_here(work, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["card_contender", work, OURS, "3"])
    card_contender.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("work", SOME)
def test_a_work_of_a_card_runs_at_its_smallest_size_without_one(work, monkeypatch, capsys):
    answer = run_here(work, monkeypatch, capsys)
    assert answer["device"] == "cpu" and answer["peak_bytes"] > 0
    assert len(answer["seconds"]) == 1 and answer["seconds"][0] > 0
    assert answer["tokens"] == (16 if work.startswith("decode") else 32) * WORKS[work].rows


@pytest.mark.slow
@pytest.mark.parametrize("work", [name for name in WORKS if name not in SOME])
def test_every_work_of_a_card_runs_at_its_smallest_size(work, monkeypatch, capsys):
    assert run_here(work, monkeypatch, capsys)["seconds"]


def test_the_works_are_the_tables_that_a_card_was_judged_by():
    for format in ("", "-nf4", "-int8", "-int4"):
        for tokens in ("1", "16", "512", "4096", "4096-back"):
            assert f"product-{tokens}{format}" in WORKS
    assert {work.kind for work in WORKS.values()} == {
        "train", "decode", "prefill", "product", "grouped", "attention",
    }  # fmt: skip
    quick = [name for name, work in WORKS.items() if work.quick]
    assert {"train", "qlora", "decode-1", "attention-8"} <= set(quick) and len(quick) < 13


def answers(monkeypatch, said):
    """`card.measure` with processes that answer by `said(name, who, turn)`; what was called."""
    called = []

    def fake(name, who, rounds, end, folder=None):
        called.append((name, who))
        return said(name, who, called.count((name, who)))

    monkeypatch.setattr(card, "_run", fake)
    monkeypatch.setattr(card, "_installed", lambda peer: True)
    return called


def test_contenders_take_turns_and_their_row_is_of_all_of_them(monkeypatch):
    def said(name, who, turn):
        if who == "unsloth":
            return None
        seconds = [1.0, 3.0] if turn == 1 else [2.0, 2.5]
        return {"seconds": seconds, "tokens": 9, "device": "a card", "peak_bytes": turn}

    called = answers(monkeypatch, said)
    rows = card.measure(["qlora"], quick=False, rounds=4, peers=True)
    # One that failed is not asked again.
    assert [who for _, who in called] == [OURS, "peft", "unsloth", OURS, "peft"]
    row = {"work": "qlora", "seconds": 2.25, "tokens_per_second": 4.0, "device": "a card"}
    assert rows == [{**row, "who": who, "peak_bytes": 2} for who in (OURS, "peft")]
    assert all(set(row) == set(card.COLUMNS) for row in rows)


@pytest.mark.parametrize("device", ["cpu", "NVIDIA H100 80GB HBM3"])
def test_variants_of_ours_take_part_on_a_card(monkeypatch, device):
    answer = {"seconds": [1.0], "tokens": 1, "device": device, "peak_bytes": 1}
    called = answers(monkeypatch, lambda *given: answer)
    card.measure(["decode-1-nf4", "attention-8"], quick=True, rounds=1, peers=False)
    variants = [who for _, who in called if who != OURS]
    wanted = ["few", "cudnn", "mosaic", "flash"] if device != "cpu" else []
    assert variants == [f"{OURS}:{name}" for name in wanted]


def test_the_kernel_that_no_card_timed_is_taken_where_it_is_compared(monkeypatch):
    from research.ops.kernels import quantized_matvec_gpu as few

    assert few.FASTEST == {}
    monkeypatch.setattr(few, "FASTEST", {})
    card_contender.take_the_kernel_for_few_rows()
    assert few.FASTEST == {"8 bits": (1, 8), "4 bits": (1, 8), "book": (1, 8)}


def test_quick_ends_in_time(monkeypatch, capsys):
    monkeypatch.setattr(card, "QUICK_SECONDS", -1)
    assert card.measure(["train"], quick=True, rounds=1, peers=False) == []
    assert "--quick has no time left" in capsys.readouterr().err

    def too_long(*given, timeout, **named):
        raise subprocess.TimeoutExpired("card_contender", timeout)

    monkeypatch.setattr(card, "QUICK_SECONDS", 100)
    monkeypatch.setattr(subprocess, "run", too_long)
    assert card.measure(["train"], quick=True, rounds=1, peers=False) == []
    assert "--quick has no time left" in capsys.readouterr().err


def test_the_card_prints_a_list_of_rows_and_leaves_out_what_fails(monkeypatch, tmp_path):
    command = [sys.executable, "-m", "research.bench", "card", "--quick", "--json", "--nopeers"]
    done = subprocess.run(
        [*command, "--works=product-16", f"--out={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    [row] = json.loads(done.stdout)
    assert done.returncode == 0 and tuple(row) == card.COLUMNS and row["work"] == "product-16"
    assert json.loads((tmp_path / "card.json").read_text()) == [row]
    assert "| product-16 | graft |" in (tmp_path / "card.md").read_text()
    failed = SimpleNamespace(returncode=1, stderr="no memory left", stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: failed)
    assert card.measure(["train"], quick=True, rounds=1, peers=False) == []
    with pytest.raises(ValueError, match="work 'trian' is unknown"):
        card.measure(["trian"], quick=True, rounds=1, peers=False)


def test_the_table_of_a_card_has_the_ratio_to_each_peer():
    row = {"work": "train", "device": "a card", "tokens_per_second": 8.0, "peak_bytes": 2**30}
    rows = [{**row, "who": "graft", "seconds": 1.0}, {**row, "who": "peft", "seconds": 3.0}]
    assert "| train | peft | 3.000000 | 8 | 3.00 | 1.00 |" in card.table(rows)


PROGRAM = """HloModule jit_step, is_scheduled=true
  %fusion.1 = f32[8]{0} fusion(%a), metadata={op_name="jit(step)/jvp(layers)/mlp/norm/mul"}
  ROOT %dot.2 = f32[2,2] dot(%a, %b), metadata={op_name="jit(step)/transpose(jvp(layers))/layers/checkpoint/rematted_computation/mlp/dot"}
  %while.3 = (f32[8], s32[]) while(%t), metadata={op_name="jit(step)/transpose(jvp(layers))/while"}
"""  # noqa: E501


def test_instructions_of_a_program_have_a_scope_and_a_pass(tmp_path):
    (tmp_path / "module_1.jit_step.gpu_after_optimizations.txt").write_text(PROGRAM)
    found = card_profile._programs(tmp_path)
    told = {
        name: (operation, card_profile._scope(path), card_profile._pass(path))
        for (module, name), (operation, path) in found.items()
        if module == "jit_step"
    }
    assert told == {
        "fusion.1": ("fusion", "layers/mlp/norm", "forward"),
        "dot.2": ("dot", "layers/mlp", "recomputed"),
        "while.3": ("while", "layers", "backward"),
    }


def test_a_table_of_shares_adds_up_the_shortest(monkeypatch):
    monkeypatch.setattr(card_profile, "MOST", 1)
    shares = [
        card_profile.Share(name, "forward", spent) for name, spent in (("a", 3.0), ("b", 1.0))
    ]
    lines = card_profile.table(shares).splitlines()
    assert lines[2:] == [
        "| a | forward | 3000.000 | 75.0% |",
        "| the rest |  | 1000.000 | 25.0% |",
        "| all | | 4000.000 | |",
    ]


@pytest.mark.slow
def test_a_profile_says_where_the_time_of_a_step_went():
    command = [sys.executable, "-m", "research.bench", "card", "--works=qlora", "--nopeers"]
    done = subprocess.run([*command, "--profile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for scope in ("layers/attention/scores | backward", "layers/mlp | recomputed", "optimizer |"):
        assert scope in done.stdout
