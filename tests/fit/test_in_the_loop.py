"""Predictions beside measurements: in a run's report, and of a CPU's memory, which can be measured
here."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.files import write_json
from research.training.report import predicted_and_measured, write_report
from tests.fit.fits import GIB, fit_json

ROWS = [
    {"step": s, "loss": 1.0, "tokens_per_second": 262144.0, "tokens": s * 524288}
    for s in range(1, 4)
]


def test_the_report_shows_predicted_beside_measured(tmp_path):
    write_json(tmp_path / "fit.json", fit_json())
    rows = [{**row, "memory_bytes": 9.5 * GIB} for row in ROWS]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(tmp_path).read_text()
    assert "Predicted and measured" in text
    assert "10.00 GiB predicted for v5p:4x4x4; 9.50 GiB measured, 95.0% of that" in text
    assert "1.25 s at least; 2 s measured at the median, of which the bound is 62.5%" in text


def test_what_is_not_known_is_said_to_be():
    unknown = {"compute": None, "memory": None, "network": None}
    shown = predicted_and_measured(fit_json(target="cpu", roofline=unknown), ROWS)
    assert "not measured" in shown["memory of a device"] and "no bound" in shown["time of a step"]
    assert "2 s measured" in shown["time of a step"]
    assert predicted_and_measured({}, ROWS) == {}


@pytest.mark.slow
def test_a_run_keeps_its_prediction(tmp_path):
    from research.train import train
    from tests.configs import experiment

    write_json(tmp_path / "fit.json", fit_json(target="cpu"))
    before = (tmp_path / "fit.json").read_bytes()
    changes = {
        "train.steps": 2,
        "train.eval_every": 0,
        "train.sample_tokens": 1,
        "data.sequence_length": 16,
    }
    assert train(experiment("quickstart", "smoke", **changes), tmp_path, live=False).exit_code == 0
    assert (tmp_path / "fit.json").read_bytes() == before
    assert "GiB predicted for cpu; not measured" in (tmp_path / "report.html").read_text()


# Steps whose memory is mostly state, and mostly activations.
SIZES = {
    "state": {"data.batch_size_per_device": 2, "execution.remat": "full"},
    "activations": {"data.batch_size_per_device": 4, "execution.remat": "none"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SIZES)
def test_a_cpu_takes_the_memory_that_is_predicted(case):
    """Within 10%, the issue's bar. Some 40 MB come on top of the compiler's own figure: room that
    the products pack their operands into, which grows with the largest matrix, and code and stacks
    that are touched for the first time."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "GRAFT_ALLOCATOR": "system",
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "GLIBC_TUNABLES")
    }
    done = subprocess.run(
        [sys.executable, __file__, case], env={**kept, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert answer["predicted"] > 500 * 2**20
    assert answer["measured"] == pytest.approx(answer["predicted"], rel=0.10)


def measured(case: str) -> dict[str, int]:
    """Bytes that Fit predicts of a step, and by which this process's peak grows from before the
    state to after two steps."""
    import jax
    import numpy as np

    from research.fit.compile import abstract_batch, plan
    from research.fit.measure import measure
    from research.fit.targets import parse_target
    from tests.configs import experiment

    sizes = {
        "layers": 8,
        "d_model": 512,
        "d_ff": 2048,
        "heads": 8,
        "kv_heads": 4,
        "head_size": 64,
        "vocab_size": 4096,
    }
    changes = {f"model.{name}": value for name, value in sizes.items()} | {
        "data.sequence_length": 512,
        "mesh": "",
    }
    asked, target = (
        experiment("pretrain", "model=llama3_8b", **changes, **SIZES[case]),
        parse_target("cpu"),
    )
    predicted = measure(asked, target).total
    program = plan(asked, target)
    with jax.set_mesh(program.mesh):
        # Compiled before, since compilers take memory of their own.
        init = jax.jit(program.make_state).lower().compile()
        step = program.train_step.lower(program.state, abstract_batch(program)).compile()
        rows = {
            name: np.ones(array.shape, array.dtype)
            for name, array in abstract_batch(program).items()
        }
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        before = peak_bytes()
        state = jax.block_until_ready(init())
        for _ in range(2):
            state, _ = jax.block_until_ready(step(state, jax.device_put(rows)))
    return {"predicted": predicted, "measured": peak_bytes() - before}


def peak_bytes() -> int:
    """The largest resident memory of this process since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1])))
