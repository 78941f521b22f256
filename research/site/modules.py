"""What the source of a module says: docstrings and signatures, read without importing it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent  # the folder that has the package


class Entry(NamedTuple):
    """A public function or class: `name` with its class in front for a method, `code`, its
    signature or fields as Python, and its docstring."""

    name: str
    code: str
    text: str


class Module(NamedTuple):
    """A Python file: dotted `name`, `file`, docstring `text` and its public `entries`."""

    name: str
    file: Path
    text: str
    entries: tuple[Entry, ...]


def read_module(file: Path) -> Module:
    """The module in a file below `ROOT`."""
    parsed = ast.parse(file.read_text(encoding="utf-8"))
    entries = (entry for node in parsed.body for entry in _entries(node))
    return Module(dotted(file), file, ast.get_docstring(parsed) or "", tuple(entries))


def dotted(file: Path) -> str:
    """`research.ops.norm` for research/ops/norm.py, `research.ops` for its __init__.py."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def first_sentence(text: str) -> str:
    """The first sentence of a docstring in one line, without the example that may end it."""
    paragraph = text.split("\n\n")[0].split(": python")[0].split(":\n")[0]
    return " ".join(paragraph.split()).split(". ")[0].rstrip(":.")


def _entries(node: ast.stmt, owner: str = "") -> Iterator[Entry]:
    """The entry of a public definition with a docstring, and those of a class's methods."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return
    text = ast.get_docstring(node)
    if not text:
        return
    name = f"{owner}.{node.name}" if owner else node.name
    if isinstance(node, ast.FunctionDef):
        yield Entry(name, _signature(node), text)
        return
    yield Entry(name, _fields(node), text)
    for member in node.body:
        yield from _entries(member, name)


def _signature(node: ast.FunctionDef) -> str:
    """`def name(a: int, *, b: str = "") -> bool`, one argument a line where it is long."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    whole = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(whole) <= 80:
        return whole
    inner = ",\n    ".join(_arguments(node.args))
    return f"def {node.name}(\n    {inner},\n){returns}"


def _arguments(a: ast.arguments) -> Iterator[str]:
    """Each argument as it is written, with the marks that separate kinds of arguments."""
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + list(a.defaults)
    for at, (argument, default) in enumerate(zip(positional, defaults)):
        if at and at == len(a.posonlyargs):
            yield "/"
        yield _argument(argument, default)
    if a.vararg:
        yield f"*{ast.unparse(a.vararg)}"
    elif a.kwonlyargs:
        yield "*"
    for argument, default in zip(a.kwonlyargs, a.kw_defaults):
        yield _argument(argument, default)
    if a.kwarg:
        yield f"**{ast.unparse(a.kwarg)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    if default is None:
        return ast.unparse(argument)
    equals = " = " if argument.annotation else "="
    return f"{ast.unparse(argument)}{equals}{ast.unparse(default)}"


def _fields(node: ast.ClassDef) -> str:
    """`class Name(Base):` with the annotated fields of a record."""
    bases = ", ".join(map(ast.unparse, node.bases))
    head = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    fields = [ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign)]
    return "\n    ".join([head, *fields])
