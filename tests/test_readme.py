"""Every command of the README is found, and is run or listed with a reason."""

import importlib.util
import sys
import threading
import time

import pytest

from tests.configs import ROOT

_SPEC = importlib.util.spec_from_file_location(
    "readme_commands", ROOT / "launch" / "readme_commands.py"
)
readme = importlib.util.module_from_spec(_SPEC)
sys.modules["readme_commands"] = readme  # where its dataclass looks for its own module
_SPEC.loader.exec_module(readme)

# Markdown, and the commands in it.
TEXTS = {
    "an indented block": ("Text\n\n    ./launch/local.sh --a=1\n", ["./launch/local.sh --a=1"]),
    "a fenced block": ("```bash\n$ python -m research.chat\n```\n", ["python -m research.chat"]),
    "a comment": ("    git clone x    # as `git`\n", ["git clone x"]),
    "a number sign in a word": ("    pip install a#b\n", ["pip install a#b"]),
    "a command in two lines": (
        "    python -m research.train --a=1 \\\n        --b=2    # needs `pip install c`\n",
        ["python -m research.train --a=1 --b=2"],
    ),
    "a comment that ends in a backslash": (
        "    pip install a  # \\\n    pip install b\n",
        ["pip install a", "pip install b"],
    ),
    "two in a row of a table": (
        '| x | `./launch/test.sh "a b"` and then `pytest tests` | `config.evals` |\n',
        ['./launch/test.sh "a b"', "pytest tests"],
    ),
    "one that is there twice": ("`pip install a`, `pip install a`", ["pip install a"]),
    "a line of Python": ("`from research import load; load('a')`", None),
    "pictures and names": ("    configs/*.py --> step\n\n`research.fit` and `[fit]`\n", []),
}


@pytest.mark.parametrize("case", TEXTS)
def test_the_commands_of_a_text_are_found(case):
    text, found = TEXTS[case]
    found = ["from research import load; load('a')"] if found is None else found
    assert readme.commands(text) == found


def test_every_command_of_the_readme_and_of_what_was_measured_is_run_or_listed():
    texts = [(ROOT / name).read_text() for name in ("README.md", "research/measured.md")]
    decided = [readme.decide(written) for written in readme.commands("\n".join(texts))]
    assert len(decided) > 40 and sum(not command.reason for command in decided) > 15
    assert not [path for command in decided for path in readme.missing_files(command, ROOT)]


def test_every_command_of_the_first_hour_is_run_or_listed():
    written = readme.commands((ROOT / "research" / "README.md").read_text())
    decided = [readme.decide(one) for one in written]
    words = " ".join(one.written for one in decided if not one.reason)
    for command in ("doctor", "train", "evaluate", "convert", "generate"):
        assert f"research.{command} " in f"{words} "


@pytest.mark.parametrize("written", ["git push", "pytest tests", "./launch/nothing.sh"])
def test_what_is_neither_run_nor_listed_fails(written):
    with pytest.raises(ValueError, match="neither run nor listed"):
        readme.decide(written)


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path):
    bad = readme.Command("python -m research.no_such_command")
    code, _, end = readme.run(bad, ROOT)
    assert code == 1 and "no_such_command" in end
    assert readme.run(readme.Command("./launch/local.sh x", text="Hello\n"), tmp_path)[0] == 127
    piped = readme.Command("from research import tree; print(input())", text="Hello\n")
    assert readme.run(piped, ROOT)[::2] == (0, "Hello")


def test_a_copy_of_the_checkout_has_what_git_has(tmp_path):
    readme.copy_checkout(ROOT, tmp_path)
    assert (tmp_path / "research" / "train.py").read_bytes() == (
        ROOT / "research" / "train.py"
    ).read_bytes()
    assert (
        not (tmp_path / ".git").exists()
        and (tmp_path / "launch" / "local.sh").stat().st_mode & 0o100
    )


def test_a_command_waits_for_what_it_uses_and_two_run_at_once(tmp_path, monkeypatch, capsys):
    began, ended, both = {}, {}, threading.Barrier(2)

    def stand_in(command, folder):
        began[command.written] = time.monotonic()
        if command.written in written[::2][:2]:
            both.wait(timeout=60)  # broken, unless the two run at once
        ended[command.written] = time.monotonic()
        return int("bad" in command.written), 0.2, "its last words"

    monkeypatch.setattr(readme, "run", stand_in)
    written = [
        "./launch/local.sh",
        "python -m research.compare runs/quickstart runs/b",
        "bad --target=adapter",
        "python -m research.goodput runs/b",
        "good --checkpoint=adapter",
    ]
    assert readme.run_all([readme.Command(one) for one in written], tmp_path) == 1
    first, compare, bad, goodput, good = written
    assert began[compare] >= ended[first] and began[goodput] >= ended[compare]
    assert began[good] >= ended[bad]
    printed = capsys.readouterr().out
    assert printed.count("ok ") == 4 and "FAILED" in printed and "its last words" in printed
