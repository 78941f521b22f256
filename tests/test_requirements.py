"""A notebook installs what its machine lacks by version, and says when a restart is needed."""

import subprocess
import sys
from importlib.metadata import version
from types import ModuleType, SimpleNamespace

import pytest

from research.downloads.drive import on_drive
from research.downloads.requirements import imported, install, outdated, requirements
from tests.configs import ROOT

# A runtime of Colab with a card, with the date of its versions.
COLAB = dict(
    line.split()[0].split("==")
    for line in (ROOT / "colabs" / "runtime.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def test_packages_of_another_machine_that_are_too_old_are_named():
    lacking = outdated(requirements(ROOT / "setup.cfg", "[cuda12]"), COLAB.get)
    assert {"jax>=0.10.1", "flax>=0.12", "absl-py>=2.3", "ml-collections>=1.1"} <= set(lacking)
    assert "jax[cuda12]>=0.10.1" in lacking  # the plugin is of the old JAX
    assert not [line for line in lacking if "cuda13" in line]  # the driver may be one for CUDA 12
    assert not {"grain>=0.2.18", "numpy>=2.0", "optax>=0.2.6"} & set(lacking)


@pytest.mark.parametrize(
    ("there", "line", "met"),
    [
        ("0.12", "flax>=0.12.0", True),
        ("0.12.0rc1", "flax>=0.12", True),
        ("0.9.30", "flax>=0.10.1", False),  # numbers, not letters
        ("10.0", "flax>=9.9", True),
        ("", "flax>=0.1", False),
    ],
)
def test_versions_are_compared_as_numbers(there, line, met):
    assert outdated([line], {"flax": there}.get) == ([] if met else [line])


def test_an_extra_is_met_by_its_plugin():
    there = {"jax": "0.10.2", "jax-cuda13-plugin": "0.10.2"}
    assert outdated(["jax[cuda13]>=0.10.1"], there.get) == []
    assert outdated(["jax[tpu]>=0.10.1"], there.get) == ["jax[tpu]>=0.10.1"]
    assert outdated(["jax[tpu]>=0.10.1"], {**there, "libtpu": "0.0.42"}.get) == []


def test_what_is_there_is_not_installed_again(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_: pytest.fail("pip was called"))
    assert install(ROOT) == "all packages are there"


def test_a_replaced_package_that_was_imported_asks_for_a_restart(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        subprocess, "run", lambda command: calls.append(command) or SimpleNamespace(returncode=0)
    )
    wanted = f"[options]\ninstall_requires =\n    numpy>={int(version('numpy')[0]) + 1}\n"
    (tmp_path / "setup.cfg").write_text(wanted)
    assert "numpy was imported before: RESTART" in install(tmp_path)
    assert calls == [
        [sys.executable, "-m", "pip", "install", "--quiet", "--editable", f"{tmp_path}"]
    ]
    assert imported(["numpy", "no-such-package"]) == ["numpy"]
    monkeypatch.setattr(subprocess, "run", lambda command: SimpleNamespace(returncode=1))
    with pytest.raises(RuntimeError, match="numpy>="):
        install(tmp_path)


def test_a_run_goes_to_the_users_drive_in_colab_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(ValueError, match="keep_on_drive is for Colab.* stays in runs/a"):
        on_drive("runs/a")
    mounted, colab = [], ModuleType("google.colab")
    colab.drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", sys.modules.get("google") or ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert on_drive("runs/a") == "/content/drive/MyDrive/graft/runs/a"
    assert mounted == ["/content/drive"]
