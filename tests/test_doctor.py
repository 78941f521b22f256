"""`research.doctor` names the remedy for machines that are broken in one way each."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from research.doctor.extras import requirements
from research.doctor.findings import OK, WRONG, diagnose
from research.doctor.machine import look
from tests.configs import ROOT

WANTED = ["jax>=0.10.1", "flax>=0.12", "numpy>=2.0"]
PACKAGES = {"jax": "0.11.1", "jaxlib": "0.11.1", "flax": "0.12.1", "numpy": "2.3.0"}
CARD = {"dev/nvidia0": "", "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX  580.65.06  x"}
OLD_CARD = {**CARD, "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Module  550.54.15"}
TPU = {"dev/accel0": ""}
PLUGIN = {"jax-cuda13-plugin": "0.11.1"}
ON_CPU = {"platform": "cpu", "kind": "cpu", "count": 1, "memory": None}
ON_CARD = {"platform": "gpu", "kind": "NVIDIA H100", "count": 8, "memory": 80 * 2**30}

# name: (packages beside the usual ones, None for an absent one; files of the machine; environment;
# what JAX finds or says; subject of the finding; words of its remedy)
BROKEN = {
    "a package is missing": ({"flax": None}, {}, {}, ON_CPU, "packages", "'flax>=0.12'"),
    "JAX is that of Colab": (
        {"jax": "0.7.2", "jaxlib": "0.7.2"}, {}, {}, ON_CPU, "packages", "--upgrade 'jax>=0.10.1'",
    ),
    "jaxlib is of another release": (
        {"jaxlib": "0.10.2"}, {}, {}, ON_CPU, "jax", "install jaxlib==0.11.1",
    ),
    "the plugin is of another release": (
        {"jax-cuda13-plugin": "0.10.2"}, CARD, {}, ON_CARD, "jax", "jax-cuda13-plugin==0.11.1",
    ),
    "a card without a plugin": ({}, CARD, {}, ON_CPU, "cuda", "[cuda]"),
    "a card with an older driver": ({}, OLD_CARD, {}, ON_CPU, "cuda", "[cuda12]"),
    "CUDA 13 on an older driver": (PLUGIN, OLD_CARD, {}, ON_CPU, "cuda", "uninstall jax-cuda13"),
    "two plugins": (
        {**PLUGIN, "jax-cuda12-plugin": "0.11.1"}, CARD, {}, ON_CARD, "cuda",
        "uninstall jax-cuda12-plugin",
    ),
    "a TPU without libtpu": ({}, TPU, {}, ON_CPU, "tpu", "[tpu]"),
    "a TPU that is held": (
        {"libtpu": "0.0.42"}, TPU, {}, "RuntimeError: Unable to initialize backend 'tpu': ABORTED: "
        "The TPU is already in use by process with pid 7", "devices", "end it",
    ),
    "a flag of another XLA": (
        {}, {}, {"XLA_FLAGS": "--xla_gpu_old=1"}, "Unknown flag in XLA_FLAGS: --xla_gpu_old=1",
        "devices", "take --xla_gpu_old=1 out of XLA_FLAGS",
    ),
    "JAX_PLATFORMS asks for what is not there": (
        {}, {}, {"JAX_PLATFORMS": "tpu"},
        "RuntimeError: Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so",
        "devices", "unset JAX_PLATFORMS",
    ),
    "the card does not answer": (PLUGIN, CARD, {}, ON_CPU, "devices", "xla_bridge"),
    "a module is gone": (
        {}, {}, {}, "ModuleNotFoundError: No module named 'jaxlib.xla'", "devices",
        "--force-reinstall jax jaxlib",
    ),
    "the cache cannot be written": (
        {}, {}, {"GRAFT_CACHE": "/proc/nothing"}, ON_CPU, "cache", "GRAFT_CACHE=FOLDER",
    ),
}  # fmt: skip


def machine(folder, packages, files, environment, answer):
    """A machine made of folders: its packages, its device files and a JAX that answers so."""
    for name, version in {**PACKAGES, **packages}.items():
        if version:
            place = folder / "site" / f"{name}-{version}.dist-info"
            place.mkdir(parents=True)
            (place / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    for name, text in files.items():
        file = folder / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    python = folder / "python"
    said = json.dumps(answer) if isinstance(answer, dict) else answer
    stream = "1" if isinstance(answer, dict) else "2"
    python.write_text(f"#!/bin/sh\ncat >&{stream} <<'END'\n{said}\nEND\n")
    python.chmod(0o755)
    environment = {"GRAFT_CACHE": str(folder), "PATH": os.environ["PATH"], **environment}
    return look(folder / "root", [str(folder / "site")], environment, str(python))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_machine_gets_its_remedy(tmp_path, case):
    packages, files, environment, answer, subject, remedy = BROKEN[case]
    found = diagnose(machine(tmp_path, packages, files, environment, answer), WANTED)
    wrong = [finding for finding in found if finding.state == WRONG]
    assert [f.subject for f in wrong if remedy in f.remedy] == [subject]
    # What follows from the fault may be wrong too: JAX does not find a card that has no plugin.
    assert {f.subject for f in wrong} <= {subject, "devices"}


@pytest.mark.parametrize(
    ("packages", "files", "answer"),
    [
        ({}, {}, ON_CPU),
        (PLUGIN, CARD, ON_CARD),
        ({"jax-cuda12-plugin": "0.11.1"}, OLD_CARD, ON_CARD),
        ({"libtpu": "0.0.42"}, TPU, {**ON_CARD, "platform": "tpu", "kind": "TPU v5 lite"}),
    ],
)
def test_a_machine_that_works_has_nothing_wrong(tmp_path, packages, files, answer):
    found = diagnose(machine(tmp_path, packages, files, {}, answer), WANTED)
    assert not [finding for finding in found if finding.state == WRONG]
    assert {"packages", "jax", "devices"} <= {f.subject for f in found if f.state == OK}


def test_an_old_python_is_named(tmp_path):
    old = dataclasses.replace(machine(tmp_path, {}, {}, {}, ON_CPU), python=(3, 10, 2))
    first = diagnose(old, WANTED)[0]
    assert (first.state, first.text) == (WRONG, "3.10.2") and "3.11" in first.remedy


def test_the_command_looks_at_this_machine():
    done = subprocess.run(
        [sys.executable, "-m", "research.doctor", "--json"],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert {row["subject"] for row in answer["findings"]} >= {"python", "packages", "devices"}
    assert done.returncode == 2 * any(row["state"] == WRONG for row in answer["findings"])
    base, extras = requirements()
    assert answer["extras"].keys() == extras.keys() >= {"tpu", "cuda", "hub"} and len(base) > 15
