"""Shipped configs by name, in a checkout and from an installed wheel."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from research import shipped
from tests.configs import ROOT

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def test_a_checkout_has_all_its_configs_by_name():
    names = set(shipped.configs())
    assert {"quickstart", "pretrain", "finetune", "posttrain"} <= names
    assert len(names) == len(list((ROOT / "configs").rglob("*.py")))


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["--config=graft:quickstart:smoke"], ":smoke"),
        (["--config", "graft:quickstart"], ""),
        (["--config=graft:quickstart:a=b:c", "--workdir=graft:x"], ":a=b:c"),
    ],
)
def test_a_name_becomes_the_file_and_keeps_its_arguments(words, rest):
    spelt = shipped.with_files(["research.train", *words])
    place = 1 if "=" in words[0] else 2
    assert spelt[place].removeprefix("--config=") == f"{ROOT}/configs/quickstart.py{rest}"
    assert spelt[place + 1 :] == words[place:]


def test_other_words_stay():
    words = ["research.train", "--config=configs/quickstart.py", "--init=graft:quickstart"]
    assert shipped.with_files(words) == words


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip builds of a copy of this checkout, in which a build leaves files."""
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheels")
    for name in ("research", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    made = subprocess.run(
        [*PIP, "wheel", "--no-deps", f"--wheel-dir={folder}", copy], capture_output=True, text=True
    )
    if made.returncode and "setuptools" in made.stderr:
        pytest.skip("pip cannot fetch setuptools, which builds the wheel")
    assert not made.returncode, made.stderr
    (file,) = folder.iterdir()
    return file


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_no_other(wheel):
    members = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in members if ".d" not in name.split("/")[0]}
    assert tops == {"research"}


def installed(wheel, folder, place):
    """A function that runs a command of the wheel, installed into an environment or with
    --target, in an empty folder."""
    python, site, work = folder / "venv/bin/python", folder / "site", folder / "work"
    work.mkdir()
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", python.parent.parent], check=True
    )
    target = [f"--target={site}"] if place == "target" else []
    # Without PYTHONPATH, where pip may find this checkout and take it for installed.
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [*PIP, f"--python={python}", "install", "--no-deps", *target, wheel]
    subprocess.run(install, check=True, env=bare, cwd=work)
    # The other packages are those of the tests' environment, without its link to this checkout.
    (own,) = python.parent.parent.glob("lib/*/site-packages")
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))

    # As in this process: compiling is most of what a small run does.
    quick = {**bare, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def run(*words):
        done = subprocess.run(
            [python, "-W", "ignore", "-m", *words],
            cwd=work, env={**quick, "PYTHONPATH": str(site)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize("place", ["environment", "target"])
def test_a_wheel_finds_its_configs(tmp_path, wheel, place):
    run = installed(wheel, tmp_path, place)
    assert set(shipped.configs()) <= {
        word.removeprefix("graft:") for word in run("research").split()
    }
    assert "train.steps=30" in run("research.train", "--config=graft:quickstart:smoke", "--help")


@pytest.mark.slow
def test_a_wheel_trains_and_generates_outside_the_checkout(tmp_path, wheel):
    run = installed(wheel, tmp_path, "environment")
    run(
        "research.train", "--config=graft:quickstart:smoke", "--workdir=run",
        "--config.train.steps=2", "--config.train.eval_every=0",
    )  # fmt: skip
    written = run("research.generate", "--workdir=run", "--prompt=def ", "--max_tokens=4", "--json")
    assert json.loads(written)["samples"]


def test_a_config_file_that_is_not_there_has_a_nearest_one(tmp_path):
    configs = f"{ROOT}/configs"
    assert shipped.nearest_file(f"{configs}/quickstrt.py") == f"{configs}/quickstart.py"
    (tmp_path / "quick.py").write_text("")
    assert shipped.nearest_file(f"{tmp_path}/quik.py") == f"{tmp_path}/quick.py"
    assert shipped.nearest_file(f"{tmp_path}/no_folder/quickstrt.py") == "graft:quickstart"
