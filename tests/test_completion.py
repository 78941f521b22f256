"""What a shell offers after the tab key."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.configs import ROOT

_ASK = """
source "$1"
COMP_LINE="$2"; COMP_POINT=${#2}
_graft
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-m", "research.completion"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    file = tmp_path_factory.mktemp("completion") / "graft.sh"
    file.write_text(done.stdout)
    return file


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    "line, offered",
    [
        ("python -m research.trai", ["research.train"]),
        ("python -m research.train --config=graft:quick", ["quickstart"]),
        ("python -m research.train --workd", ["--workdir"]),
        ("python -m research.fit --tar", ["--target"]),
        ("python -m research.train --tar", []),
        ("python other.py --workd", []),
        ("python -m research.train runs/", []),
    ],
)
def test_the_tab_key(script, line, offered):
    done = subprocess.run(
        ["bash", "-c", _ASK, "bash", str(script), line],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == offered
