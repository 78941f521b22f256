"""The text of `--help`: a command's docstring, its flags with their defaults, the config's fields.

A command is a module with a docstring, flags in global variables and a function `main`:

    python -m research.generate --help
    python -m research.train --config=configs/finetune.py:task=chat --help   # with all fields
"""

import ast
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

FLAGS = flags.FLAGS
HELP = ("help", "helpfull")  # defined in research.command, for every command
_WIDTH = 100
_REPEAT = ";\n    repeat this option to specify a list of values"
_COLUMN = 30  # where the meaning of a flag begins


def help_text(main: Callable[..., Any], full: bool) -> str:
    """The help of the command whose module has this `main`: its docstring with an example, its own
    flags, then those that it shares with other commands; `full` adds the flags of libraries.

    Where the command line names a config file, the file's docstring and its fields with their
    values are part of the text.
    """
    module = main.__globals__
    shared = _shared_names()
    # In the order in which the file defines them, which is by meaning and not by the alphabet.
    values = [v for value in module.values() for v in _members(value)]
    holders = [value.name for value in values if isinstance(value, flags.FlagHolder)]
    own = [name for name in dict.fromkeys(holders) if name not in shared]
    (shared or own).extend(HELP)
    text = [(module["__doc__"] or "").strip(), "", "Flags:", *_lines(own)]
    if shared:
        text += ["", "Flags shared with other commands:", *_lines(shared)]
    if full:
        known = {*own, *shared}
        text += ["", "Flags of libraries:", *_lines(sorted({*_long_names()} - known))]
    for name in own:
        if hasattr(type(FLAGS[name]), "config_filename"):  # a flag of ml_collections.config_flags
            text += ["", *_config_lines(name)]
    return "\n".join(text)


def _members(value: Any) -> list | tuple:
    """The members of a list or tuple, as which a module may hold its flags; else the value."""
    return value if isinstance(value, list | tuple) else [value]


def command_lines(package: Path) -> list[str]:
    """One line for each command in the folder of a package: its name and what it is for."""
    rows = []
    for name, file in command_files(package):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        # Many first lines go on with an example: "Scores a text: python -m research.evaluate ...".
        purpose = docstring.split("\n\n")[0].split(": python")[0].split(":\n")[0]
        rows.append(f"  {name:<20}{' '.join(purpose.split()).rstrip(':.')}")
    return rows


def command_files(package: Path) -> list[tuple[str, Path]]:
    """(name, file) of each command in the folder of a package."""
    found = []
    for file in sorted([*package.glob("[!_]*.py"), *package.glob("*/__main__.py")]):
        source = file.read_text(encoding="utf-8")
        # A command ends in `if __name__ == "__main__": command.run(main)`.
        if "command.run(" in (ast.get_source_segment(source, ast.parse(source).body[-1]) or ""):
            found.append((file.parent.name if file.name == "__main__.py" else file.stem, file))
    return found


def _shared_names() -> list[str]:
    """Names of the flags that modules of the package define for several commands, such as those
    that name a model; --help, of all commands, is left out."""
    return [
        flag.name
        for owner, defined in FLAGS.flags_by_module_dict().items()
        # absl takes the program's name for the module that is run.
        if owner.startswith("research.") and owner != sys.argv[0]
        for flag in defined
        if flag.name not in HELP
    ]


def _long_names() -> Iterator[str]:
    """Names of all flags, without the short names, which are names of the same flags."""
    return (name for name in FLAGS if FLAGS[name].name == name)


def _lines(names: list[str]) -> list[str]:
    """The lines that explain these flags."""
    lines = []
    for name in names:
        flag = FLAGS[name]
        if flag.boolean:
            left = f"--{name}" if not flag.default else f"--[no]{name}"
        else:
            left = f"--{name}" if flag.default in (None, []) else f"--{name}={_shown(flag.default)}"
        left = f"-{flag.short_name}, {left}" if flag.short_name else left
        choices = getattr(flag.parser, "enum_values", None)
        # absl adds words of its flag_names to the help of a flag that may be repeated.
        meaning = (flag.help or "").removesuffix(_REPEAT)
        meaning = f"{meaning} ({', '.join(choices)})" if choices else meaning
        first = f"  {left:<{_COLUMN - 4}}  "
        wrapped = textwrap.wrap(" ".join(meaning.split()), _WIDTH - _COLUMN) or [""]
        if len(first) > _COLUMN:  # a long name has a line of its flag_names
            lines.append(first.rstrip())
            first = " " * _COLUMN
        lines += [f"{first}{wrapped[0]}".rstrip(), *(" " * _COLUMN + line for line in wrapped[1:])]
    return lines


def _shown(value: Any) -> str:
    """A default as it would be typed."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _config_lines(name: str) -> list[str]:
    """The docstring of the config file that was given and its fields; else how to see them."""
    config = FLAGS[name].value
    if config is None:
        return [f"--{name}=FILE --help explains that file and lists the fields that can be set."]
    # FILE.py:ARGUMENTS; the arguments may have colons of their flag_names.
    file = Path(FLAGS[name].config_filename.split(":", 1)[0])
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    fields = [f"  --{name}.{path}={value!r}" for path, value in _fields(config, "")]
    return [f"{file}: {docstring}", "", "Fields, with their values here:", *fields]


def _fields(config: ConfigDict, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field, in the order of the file."""
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
