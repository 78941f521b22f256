"""What of the house style a machine can check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "research"
FILES = sorted(ROOT.rglob("*.py"))
AXES = "BTSDNKHFVELRGMkbW"


def suffix(node: ast.expr) -> str | None:
    """BTD of the name x_BTD, or of p["w_DF"]; None where a name has no shape suffix."""
    name = node.id if isinstance(node, ast.Name) else None
    match = re.search(rf"_([{AXES}]+)$", name or "")
    return match[1] if match else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_letters_of_einsums_are_those_of_their_operands(path):
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(getattr(node, "func", None), "id", None) or getattr(
            getattr(node, "func", None), "attr", None
        )
        if not isinstance(node, ast.Call) or name not in ("einsum", "contract") or not node.args:
            continue
        equation = node.args[0]
        if not (isinstance(equation, ast.Constant) and isinstance(equation.value, str)):
            continue
        letters = equation.value.split("->")[0].split(",")
        for want, operand in zip(letters, node.args[1:]):
            got = suffix(operand)
            assert got is None or got == want, (
                f"{path.name}:{node.lineno}: {equation.value} of {got}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), (
                f"{path.name}:{node.lineno} {node.name} has no docstring"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_users_errors_are_no_assertions_and_nothing_is_left_to_do(path):
    text = path.read_text()
    assert not [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)]
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    assert not re.search(r"(?<!\.)\b(eval|exec)\(|import pickle|yaml\.load\(", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short_and_no_ternary_holds_another(path):
    text = path.read_text()
    assert text.count("\n") <= 300, (
        f"{path.name} has {text.count(chr(10))} lines; give part of it a file of its own"
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 50, f"{path.name}:{node.lineno} {node.name} has {lines} lines"
        if isinstance(node, ast.IfExp):
            inner = (node.body, node.orelse)
            assert not any(isinstance(part, ast.IfExp) for part in inner), (
                f"{path.name}:{node.lineno}"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_tables_are_exempt_from_the_formatter(path):
    lines = path.read_text().splitlines()
    skipped = {number for number, line in enumerate(lines, 1) if "# fmt: skip" in line}
    tables = {
        node.end_lineno
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
    }
    assert skipped <= tables, f"{path.name}: lines {sorted(skipped - tables)} are no table"


def test_half_of_all_files_have_at_most_120_lines():
    lengths = sorted(path.read_text().count("\n") for path in FILES)
    assert lengths[len(lengths) // 2] <= 120
