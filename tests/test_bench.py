"""The benchmark's arithmetic, its refusals and our own contender; nothing is timed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from research.bench import train
from research.bench.contender import step_of
from research.bench.shapes import BATCH, LENGTH
from research.tuning.lora_specs import LoraConfig
from research.tuning.method import TuneConfig
from tests.configs import ROOT
from tests.families import FAMILIES

SECONDS = {"graft": 2.0, "graft_in_float32": 3.0, "transformers_compiled": 1.0, "nanogpt": 4.0}
FLOPS = 1e12
PEERS = {"nanogpt": "/a", "nanodo": "/b"}


def timed(**seconds):
    return {
        name: {"seconds": s, "all_seconds": [s], "peak_bytes": 5_000_000}
        for name, s in seconds.items()
    }


def test_ratios_are_of_speeds_within_one_run():
    rows = {
        row["contender"]: row for row in train.rows("gpt2", "bfloat16", timed(**SECONDS), FLOPS)
    }
    assert {name: row["ratio"] for name, row in rows.items()} == {
        "graft": 0.5,
        "graft_in_float32": pytest.approx(1 / 3),
        "transformers_compiled": 1.0,
        "nanogpt": 0.25,
    }
    assert {name: row["graft_ratio"] for name, row in rows.items()} == {
        "graft": 1.0,
        "graft_in_float32": 1.5,
        "transformers_compiled": 0.5,
        "nanogpt": 2.0,
    }
    ours = rows["graft"]
    assert ours["tokens_per_second"] == BATCH * LENGTH / 2
    assert ours["share"] == pytest.approx(ours["gflops"] * 1e9 / FLOPS)
    # 6 flops of each of 13.76M weights and half of 12 L d S of attention, 16 x 256 tokens, in 2
    # seconds.
    assert ours["gflops"] == pytest.approx(
        (6 * 13.76e6 + 6 * 6 * 384 * 256) * 4096 / 2 / 1e9, rel=1e-3
    )


def test_a_table_has_a_line_for_each_row_and_no_ratio_without_its_peer():
    rows = train.rows("gpt2", "float32", timed(graft=2.0, nanodo=3.0), FLOPS)
    assert [row["ratio"] for row in rows] == [None, None]
    header, ours, nanodo, *legend = train.table(rows).splitlines()
    assert ours.split() == [
        "gpt2",
        "float32",
        "graft",
        "2.000",
        "2048",
        "1.00",
        f"{rows[0]['share']:.0%}",
        "5",
    ]
    assert nanodo.split()[2:6] == ["nanodo", "3.000", "1365", "1.50"]
    assert len(header) == len(ours) == len(nanodo)
    assert all(line.split(":")[0] in header for line in legend)
    json.dumps(rows)


@pytest.mark.parametrize(
    ("shape", "dtype", "transformers", "names"),
    [
        (
            "gpt2",
            "float32",
            True,
            "graft transformers transformers_compiled nanogpt nanogpt_compiled nanodo",
        ),
        ("gpt2", "bfloat16", False, "graft graft_in_float32 nanogpt nanogpt_compiled nanodo"),
        ("llama", "float32", True, "graft transformers transformers_compiled"),
    ],
)
def test_who_takes_part(shape, dtype, transformers, names):
    contenders = train.contenders(shape, dtype, transformers, PEERS)
    assert list(contenders) == names.split()
    if "nanodo" in contenders:
        assert contenders["nanodo"] == f"{shape}:{dtype}:nanodo:/b"
    if "graft_in_float32" in contenders:
        assert contenders["graft_in_float32"] == "gpt2:float32:graft"


@pytest.mark.parametrize(
    ("shapes", "dtypes", "checkouts", "words"),
    [
        (["bert"], ["float32"], {}, "'bert' is unknown; choose from llama, gpt2"),
        (["gpt2"], ["float64"], {}, "'float64' is unknown; choose from float32, bfloat16"),
        (
            ["gpt2"],
            ["float32"],
            {"nanogpt": "/no/such"},
            "--nanogpt=/no/such is no checkout of nanogpt",
        ),
        (["llama"], ["float32"], {"nanodo": "."}, "--nanodo is timed on the shape gpt2"),
    ],
)
def test_what_is_unknown_is_refused_before_anything_starts(
    tmp_path, monkeypatch, shapes, dtypes, checkouts, words
):
    (tmp_path / "nanodo").mkdir()
    (tmp_path / "nanodo/model.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "take_turns", lambda *a: pytest.fail("a contender was started"))
    with pytest.raises(ValueError, match=words):
        train.compare(shapes, dtypes, rounds=1, transformers=False, checkouts=checkouts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "benchmark 'run' is unknown"),
        (
            ["train", "--nanodo=/no/such"],
            "--nanodo=/no/such is no checkout of nanodo: it has no nanodo/model.py",
        ),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "research.bench", *arguments, "--nopeers"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and not done.stdout
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("tune", [{}, {"tune": TuneConfig("lora"), "lora": LoraConfig(rank=2)}])
def test_our_contender_steps_on_one_batch(tune):
    rows = np.random.default_rng(0).integers(0, 96, (2, 9)).astype(np.int32)
    step = step_of(FAMILIES["llama2_7b"], rows, **tune)
    losses = [step() for _ in range(4)]
    assert losses[3] < losses[0]  # the same batch again and again is learnt
