"""A type checker sees what a protocol asks for: without one method an implementer is refused."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# An implementer's file and class, and a method that its protocol has no default for.
CASES = {
    "Leaf": ("research/weights/lora.py", "Lora", "gathered"),
    "Objective": ("research/objectives/masked_lm.py", "MaskedLM", "predicted_tokens"),
    "Evaluation": ("research/evals/heldout.py", "HeldOut", "items"),
    "Feed": ("research/run/window_feed.py", "WindowFeed", "state"),
    "KVCache": ("research/models/cache.py", "SlotCache", "attend"),
}


def check(tmp_path: Path, *shadow: str) -> subprocess.CompletedProcess:
    """mypy with the settings of pyproject.toml; `--shadow-file FILE OTHER` reads OTHER for FILE."""
    command = [sys.executable, "-m", "mypy", f"--cache-dir={tmp_path.parent / 'mypy'}", *shadow]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", CASES)
def test_an_implementer_without_a_method_is_refused(protocol, tmp_path):
    path, name, method = CASES[protocol]
    source = (ROOT / path).read_text()
    [owner] = [node for node in ast.parse(source).body if getattr(node, "name", "") == name]
    [found] = [node for node in owner.body if getattr(node, "name", "") == method]
    first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
    lines = source.splitlines(keepends=True)
    other = tmp_path / Path(path).name
    other.write_text("".join(lines[: first - 1] + lines[found.end_lineno :]))

    done = check(tmp_path, "--shadow-file", path, str(other))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "abstract" in done.stdout, done.stdout


@pytest.mark.slow
def test_as_they_are_all_pass(tmp_path):
    done = check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
