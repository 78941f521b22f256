"""Compilers without their devices, in processes of their own: whether they are here, and what
research.fit says with them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from research.fit.targets import parse_target
from tests.configs import ROOT

COMPILERS = {"gpu": "jax_cuda13_plugin", "tpu": "libtpu"}


def in_a_process(*arguments: str) -> subprocess.CompletedProcess:
    """Python with these arguments where the environment suits compilers without their devices."""
    settings = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **settings}, capture_output=True, text=True
    )


def need_compiler(target: str) -> None:
    """Skips where the target's compiler is not installed; setup.cfg's extra "fit" brings both."""
    package = COMPILERS[parse_target(target).platform]
    if importlib.util.find_spec(package) is None:
        pytest.skip(
            f"the compiler for {target} is in the package {package}, which is not installed"
        )


def fit(config: str, arg: str, target: str, *flags: str) -> tuple[int, dict]:
    """Exit code and answer of research.fit on a config that ships."""
    file = f"--config={ROOT}/configs/{config}.py:{arg}"
    done = in_a_process("-m", "research.fit", file, f"--target={target}", "--json", *flags)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout)
