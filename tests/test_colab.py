"""The notebook runs top to bottom, and defines nothing of its own."""

import ast
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from tests.configs import ROOT

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_calls_the_library_and_defines_nothing(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
            assert not [
                node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)
            ]
            assert not cell.outputs  # committed without output


@pytest.mark.filterwarnings("ignore")  # of the notebook machinery, in this process
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_NOTEBOOK_ARG", "smoke")
    monkeypatch.setenv("GRAFT_NOTEBOOK_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("XLA_FLAGS", "")
    # As in this process: compiling is most of what the kernel and its runs do.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "colabs")}}
    ).execute()
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    pictures = [
        out
        for out in shown
        if "image/svg+xml" in out.get("data", {}) or "text/html" in out.get("data", {})
    ]
    assert len(pictures) == 2 and (tmp_path / "run" / "report.html").exists()
    assert any((tmp_path / "run").rglob("metrics.jsonl"))


def _first_cell(repository: str) -> str:
    cells = nbformat.read(ROOT / "colabs" / "quickstart.ipynb", as_version=4).cells
    source = next(cell.source for cell in cells if cell.cell_type == "code")
    assert "repository = ''" in source
    return source.replace("repository = ''", f"repository = {repository!r}")


def test_the_notebook_alone_clones_its_checkout(tmp_path, monkeypatch):
    """As on Colab, where the folder has the notebook's session and nothing else."""
    origin, session = tmp_path / "origin", tmp_path / "session"
    for name in ("setup.cfg", "research/train.py"):
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, origin / name)
    session.mkdir()
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.chdir(session)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(_first_cell(str(origin)), {})  # installs nothing: all packages are here
    assert (session / "graft" / "setup.cfg").exists()
    assert sys.path[0] == str(session / "graft")
    exec(_first_cell(""), {})  # a second time it is found
    with monkeypatch.context() as elsewhere, pytest.raises(ValueError, match="set repository"):
        elsewhere.chdir(tmp_path)
        exec(_first_cell(""), {})
