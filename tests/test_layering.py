"""Lower layers never import higher ones, and packages of one level import each other only where the
map says so."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "research"
LEVELS = {
    "tree": 0, "precision": 0, "files": 0, "allocator": 0, "command": 0, "usage": 0, "scopes": 0,
    "shipped": 0, "stopping": 0,
    "downloads": 0, "devices": 0, "parallel": 0,
    "ops": 1,
    "weights": 2, "tables": 2,
    "models": 3, "data": 3,
    "objectives": 4, "training": 4, "infer": 4, "tuning": 4, "experiment": 4,
    "interop": 5, "posttrain": 5, "serve": 5, "retrieval": 5,
    "run": 6, "evals": 6, "compress": 6, "merging": 6,
    "fit": 7, "bench": 7, "doctor": 7, "sweep": 7, "apply": 7, "site": 7,
    "train": 8, "generate": 8, "evaluate": 8, "convert": 8, "merge": 8, "quantize": 8, "embed": 8,
    "inspect_batch": 8, "inspect_checkpoint": 8, "completion": 8, "transcribe": 8,
    "chat": 8, "classify": 8, "compare": 8, "goodput": 8, "model_card": 8,
    "run_directory": 8, "__main__": 8,
}  # fmt: skip
# Within a level: who may import whom beside itself.
SAME_LEVEL = {
    "allocator": {"devices"},
    "command": {"usage", "shipped", "stopping", "files"},
    "downloads": {"files"},
    "parallel": {"devices", "command"},
    "experiment": {"objectives", "training", "tuning"},
    "run": {"evals"},
    "posttrain": {"interop"},
    "compress": {"evals"},
    "sweep": {"fit"},
}


def imports(path: Path) -> set[str]:
    """Top-level modules of `research` that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "research":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("research."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("research.")
            }
    return found


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    # The command of a folder stands on the roof, whatever stands on the rest of the folder.
    own = "__main__" if path.name == "__main__.py" else own
    assert own in LEVELS, f"{own} has no level; give it one in this test and in the architecture"
    for other in imports(path) - {own}:
        below = LEVELS[other] < LEVELS[own]
        assert below or other in SAME_LEVEL.get(own, set()), (
            f"{own} (level {LEVELS[own]}) imports {other}"
        )


def is_module(name: str) -> bool:
    place = ROOT.parent / name.replace(".", "/")
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imported_files(path: Path) -> set[Path]:
    """Files of `research` that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "research":
            # A module of the package, or else a name that its __init__.py or the module has.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("research.")]
        else:
            continue
        for name in names:
            place = ROOT.parent / name.replace(".", "/")
            found |= {
                file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()
            }
    return found - {path, ROOT / "__init__.py"}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle of arrows in order, [] where there is none."""
    done, walk = set(), []

    def visit(node: str) -> list[str]:
        if node in walk:
            return walk[walk.index(node) :]
        if node in done:
            return []
        walk.append(node)
        found = next(filter(None, map(visit, sorted(arrows.get(node, ())))), [])
        if not found:
            walk.pop()
            done.add(node)
        return found

    return next(filter(None, map(visit, sorted(arrows))), [])


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_of_files():
    name = lambda path: str(path.relative_to(ROOT))
    assert not circle({name(path): set(map(name, imported_files(path))) for path in FILES})


def test_no_circle_of_folders():
    """A folder within a folder counts as one of its own; a file at the top is its own folder, and
    so is a folder's command."""

    def folder(path: Path) -> str:
        place = path.relative_to(ROOT)
        alone = len(place.parts) == 1 or path.name == "__main__.py"
        return str(place if alone else place.parent)

    arrows: dict[str, set[str]] = {}
    for path in FILES:
        arrows.setdefault(folder(path), set()).update(map(folder, imported_files(path)))
    assert not circle({one: others - {one} for one, others in arrows.items()})


def test_no_file_hides_behind_a_name_that_says_nothing():
    assert not [p for p in FILES if p.stem in {"utils", "util", "common", "helpers", "misc", "lib"}]


def test_tensorflow_torch_and_pickle_are_never_imported():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            # The reference of a certificate runs in a process of its own.
            outside = "bench" in path.parts or path.name == "reference.py"
            forbidden = {"tensorflow", "pickle", "dill"} | (set() if outside else {"torch"})
            assert not [n for n in names if n.split(".")[0] in forbidden], path
