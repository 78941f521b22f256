"""Commands that pages and docstrings show have the flags, and their configs the fields, that they
are given there."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from research import shipped
from research.site.helps import help_texts
from research.usage import command_files
from tests.configs import ROOT, load_config
from tests.test_readme import readme

COMMANDS = dict(command_files(ROOT / "research"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "research/measured.md")),
    *sorted(ROOT.glob("research/**/README.md")),
]
# Of commands, configs and packages.
DOCSTRINGS = [*COMMANDS.values(), *shipped.configs().values(), *ROOT.glob("research/*/__init__.py")]


def _shown(file: Path) -> list[str]:
    """The commands that a page, or a module's docstring, shows."""
    text = file.read_text()
    if file.suffix == ".md":
        return readme.commands(text)
    docstring = ast.get_docstring(ast.parse(text)) or ""
    # The example of a command may stand in its first sentence.
    first = re.findall(r"python -m (?:\S+(?: |\n(?=-)))+\S*", docstring.split("\n\n")[0])
    return [*first, *readme.commands(docstring)]


WRITTEN = sorted(
    {
        (str(file.relative_to(ROOT)), command)
        for file in (*PAGES, *DOCSTRINGS)
        for command in _shown(file)
        # One that a user has only begun to type is of no module.
        if re.match(r"python -m research\b(?!\.tr$)|\./launch/local\.sh", command)
    }
)


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The names of the flags that each command explains to --help, by its name."""
    return {
        name: set(re.findall(r"^  (?:-\w, )?--(?:\[no\])?(\w+)", text, re.MULTILINE))
        for name, text in help_texts(COMMANDS).items()
    }


def test_commands_are_found_in_pages_and_docstrings():
    files = {file for file, _ in WRITTEN}
    assert len(WRITTEN) > 140
    assert {"README.md", "research/README.md", "research/train.py", "configs/finetune.py"} <= files
    lacking = [name for name, file in COMMANDS.items() if str(file.relative_to(ROOT)) not in files]
    assert lacking == ["completion"]  # which is shown as an argument of the shell's `source`


def test_every_written_command_has_its_flags_and_fields(flags):
    assert [wrong for file, command in WRITTEN for wrong in _wrong(file, command, flags)] == []


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("python -m research.nothing", "no command"),
        ("python -m research.chat --workdirs=a", "no flag workdirs"),
        (
            "python -m research.train --config=graft:finetune --config.train.epoch=1",
            "train.epoch",
        ),
        ("python -m research.train --config=graft:quickstarts", "no config"),
        ("./launch/local.sh --config.data.sources=shakespeare", "data.sources"),
    ],
)
def test_a_wrong_one_is_found(command, wrong, flags):
    assert wrong in "".join(_wrong("here", command, flags))


def _wrong(file: str, command: str, flags: dict[str, set[str]]) -> Iterator[str]:
    """What a command has that is not there, a line each."""
    program, *words = shlex.split(re.split(r"\s[|>&]", command)[0].removeprefix("python -m "))
    name = "train" if program.startswith("./") else program.removeprefix("research").strip(".")
    if "." in name and ROOT.joinpath("research", *name.split(".")).with_suffix(".py").is_file():
        return  # a module of a folder that is run by itself
    if name and name not in flags:
        yield f"{file}: {command}: no command {name}"
        return
    given = dict(word.removeprefix("--").partition("=")[::2] for word in words if word[:2] == "--")
    spelt = given.get("config", "configs/quickstart.py" if program.startswith("./") else "")
    for flag in given:
        if flag.startswith("config."):
            if not _has(spelt, flag.split(".")[1:]):
                yield f"{file}: {command}: no field {flag} in {spelt!r}"
        elif flag not in flags.get(name, ()) and flag.removeprefix("no") not in flags.get(name, ()):
            yield f"{file}: {command}: no flag {flag}"
    if spelt.startswith(("configs/", "graft:")) and _config(spelt) is None:
        yield f"{file}: {command}: no config {spelt}"


def _has(spelt: str, path: list[str]) -> bool:
    """Whether the config as it is spelt has a field; True of one that is not shipped."""
    node = _config(spelt)
    for part in path if node is not None else ():
        if path[0] == "evals":  # has names of the user
            return True
        if part not in node:
            return False
        node = node[part]
    return True


@cache
def _config(spelt: str):
    """The config of configs/NAME.py:ARGUMENTS or graft:NAME:ARGUMENTS, None for any other."""
    name, _, argument = spelt.removeprefix("graft:").removeprefix("configs/").partition(":")
    name = name.removesuffix(".py")
    return load_config(name, argument) if name in shipped.configs() else None
