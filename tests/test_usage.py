"""`--help` of every command: its docstring, its flags and, with a config, the config's fields."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest

from research.usage import HELP, command_lines
from tests.configs import ROOT

# Imports once what the commands share, and forks for each command line.
_DRIVER = """
import json, os, runpy, sys
import research.run.resolve
for module, argv in json.load(sys.stdin):
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.argv, code = [module, *argv], 0
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
        os._exit(code or 0)
    os.close(write)
    text = b"".join(iter(lambda: os.read(read, 65536), b"")).decode()
    print(json.dumps([os.waitstatus_to_exitcode(os.wait()[1]), text]))
"""
COMMANDS = [line.split()[0] for line in command_lines(ROOT / "research")]
CONFIG = f"--config={ROOT}/configs/quickstart.py:smoke"
LINES = {name: [f"research.{name}", ["--help"]] for name in COMMANDS} | {
    "short": ["research.generate", ["-h"]],
    "full": ["research.generate", ["--helpfull"]],
    "after another flag": ["research.chat", ["--temperature=0.2", "--help"]],
    "with a config": ["research.train", [CONFIG, "--config.train.steps=7", "--help"]],
}


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str]]:
    """Exit code and output of every line."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DRIVER],
        input=json.dumps(list(LINES.values())),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(LINES, map(json.loads, done.stdout.splitlines()), strict=True))


def _module(command: str) -> ast.Module:
    folder = ROOT / "research" / command
    file = folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")
    return ast.parse(file.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_the_docstring_and_every_flag(answers, command):
    code, text = answers[command]
    assert code == 0, text
    module = _module(command)
    assert text.startswith(ast.get_docstring(module).splitlines()[0])
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE_"):
            # Some names are made in a loop, as are those of bench.
            assert not isinstance(node.args[0], ast.Constant) or node.args[0].value in text


SHARED_TITLE = "\nFlags shared with other commands:\n"
# Flags that files define for several commands, by the file's name.
SHARED = {
    file.stem: re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', file.read_text())
    for file in (ROOT / "research/run").glob("*_flag*.py")
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_then_the_commands_own_flags_then_shared_ones(answers, command):
    before, after = answers[command][1].split("\nFlags:\n")
    assert f"python -m research.{command}" in before
    assert max(map(len, before.splitlines())) <= 100  # an example that goes on does so below
    own, shared = map(_names, f"{after}{SHARED_TITLE}".split(SHARED_TITLE)[:2])
    assert (shared or own)[-2:] == [*HELP] and not {*own} & {*shared}
    source = ast.unparse(_module(command))
    for file in (file for file in SHARED if file in source):
        assert set(SHARED[file]) <= set(shared), f"not all flags of {file} are in the help"


def _names(text: str) -> list[str]:
    """The names of the flags that a part of a help explains."""
    return re.findall(r"^  (?:-\w, )?--(?:\[no\])?(\w+)", text, re.MULTILINE)


def test_defaults_short_and_full_forms(answers):
    assert {code for code, _ in answers.values()} == {0}
    assert "--max_tokens=64 " in answers["generate"][1]
    assert answers["short"] == answers["generate"]
    assert "--temperature=0.2" not in answers["after another flag"][1]  # the default, not the value
    assert "--verbosity" in answers["full"][1] and "--verbosity" not in answers["generate"][1]


def test_help_with_a_config_explains_the_file_and_lists_its_fields(answers):
    text = answers["with a config"][1]
    docstring = ast.get_docstring(ast.parse((ROOT / "configs/quickstart.py").read_text()))
    assert docstring.splitlines()[-1] in text
    assert "--config.train.steps=7" in text and "--config.optimizer.learning_rate=" in text
    assert "--config=FILE --help" in answers["train"][1]


def test_the_package_lists_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "research"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert {"train", "generate", "chat", "fit", "bench"} <= set(COMMANDS)
    for line in command_lines(ROOT / "research"):
        assert line in done.stdout and len(line) < 100


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_a_command_without_a_traceback(unbuffered):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "research"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
