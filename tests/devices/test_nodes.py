"""A machine's accelerator is told by its device files; without one JAX does not look for any."""

import os
import subprocess
import sys

import pytest

from research.devices import nodes
from tests.configs import ROOT

# Device files of machines: Cloud TPU v2 to v5p have accel*, v5e and v6e VFIO groups.
MACHINES = {
    "laptop": ([], None),
    "v4": (["accel0", "accel1", "accel2", "accel3"], "tpu"),
    "v5e": (["vfio/0", "vfio/vfio"], "tpu"),
    "v6e of eight chips": ([*(f"vfio/{n}" for n in range(8)), "vfio/vfio"], "tpu"),
    "a chip whose group has another number": (["vfio/17", "vfio/vfio"], "tpu"),
    "virtual machines without devices": (["vfio/vfio"], None),
    "laptop with a neural unit of another maker": (["accel/accel0"], None),
    "DGX": ([f"nvidia{n}" for n in range(8)], "cuda"),
    "container with the second card alone": (["nvidia1", "nvidiactl"], "cuda"),
    "Linux inside Windows": (["dxg"], "cuda"),
    "Jetson": (["nvmap"], "cuda"),
    "AMD": (["kfd", "dri/card0"], "rocm"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_is_known_by_its_device_files(machine, tmp_path):
    files, kind = MACHINES[machine]
    for name in files:
        (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / name).touch()
    assert nodes.accelerator(tmp_path, {}) == kind
    assert nodes.extra(tmp_path, {}) == (f"[{kind}]" if kind in ("tpu", "cuda") else "")
    assert nodes.runs_on_cpu(tmp_path, {}) == (kind is None)
    asked_for_cpu = {"JAX_PLATFORMS": "cpu"}
    assert nodes.extra(tmp_path, asked_for_cpu) == "" and nodes.runs_on_cpu(tmp_path, asked_for_cpu)


def test_a_plugin_for_cuda_12_gets_no_other_beside_it(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    monkeypatch.setattr(nodes, "_installed", lambda package: package == "jax-cuda12-plugin")
    assert nodes.extra(tmp_path, {}) == "[cuda12]"
    extras = (ROOT / "setup.cfg").read_text()
    assert "\ncuda12 = jax[cuda12]" in extras


# Beside each: JAX_PLATFORMS as it is set, and as `import research` leaves it.
CHOICES = {
    "libtpu without a TPU": ("libtpu", None, "cpu"),
    "a CUDA plugin without a card": ("jax_cuda12_plugin", None, "cpu"),
    "the user's own choice": ("libtpu", "tpu,cpu", "tpu,cpu"),
    "nothing installed that would look": ("libtpu_docs", None, None),
    "another maker's plugin": ("jax_metal_plugin", None, None),
}


@pytest.mark.skipif(nodes.accelerator() is not None, reason="this machine has an accelerator")
@pytest.mark.parametrize("jax_first", [False, True])
@pytest.mark.parametrize("case", CHOICES)
def test_a_cpu_run_looks_for_no_accelerator(case, jax_first, tmp_path):
    package, before, after = CHOICES[case]
    (tmp_path / f"{package}.py").touch()
    # A stand-in for JAX, which takes a second to import: its option is what counts once it is
    # imported.
    (tmp_path / "jax.py").write_text(
        "class config:\n    chosen = None\n    update = lambda name, value: "
        "setattr(config, 'chosen', (name, value))\n"
    )
    program = "import os, research; print(os.environ.get('JAX_PLATFORMS'))"
    if jax_first:
        program = f"import jax; {program}; print(jax.config.chosen)"
    environment = {
        **{name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"},
        **({"JAX_PLATFORMS": before} if before else {}),
        # Ahead of installed packages, of which a CUDA plugin may be one.
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
    }
    command = [sys.executable, "-S", "-c", program]  # -S: without the environment's packages
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    chosen = ["('jax_platforms', 'cpu')" if before is None and after else "None"]
    assert done.stdout.split("\n")[:-1] == [str(after), *(chosen if jax_first else [])]
