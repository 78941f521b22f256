"""The notebooks run top to bottom, and define nothing of their own.

Each is the rendering of the percent-script beside it: jupytext --update --to ipynb colabs/*.py
"""

import ast
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from research.data.media.png import png
from tests.checkpoints import save_checkpoint
from tests.configs import ROOT
from tests.families import FAMILIES
from tests.test_finetune import CHAT, write_rows

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
# Pictures and pages that each shows.
SHOWN = {
    "quickstart": 2, "ablation": 2, "qlora": 2, "pretrain": 2, "tour": 1, "quantize": 1,
    "pictures_and_sound": 6,
}  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_calls_the_library_and_defines_nothing(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
            assert not [
                node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)
            ]
            assert not cell.outputs  # committed without output


def test_a_notebook_is_the_rendering_of_its_script():
    jupytext = pytest.importorskip("jupytext", reason="needs the extra test: jupytext")
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)
    for path in NOTEBOOKS:
        script = jupytext.read(path.with_suffix(".py"), fmt="py:percent")
        rendered = nbformat.read(path, as_version=4)
        assert [(cell.cell_type, cell.source) for cell in script.cells] == [
            (cell.cell_type, cell.source) for cell in rendered.cells
        ]


def test_the_first_cell_is_one_and_the_same():
    assert len({_first_code(path) for path in NOTEBOOKS}) == 1


DECODER = replace(
    FAMILIES["llama2_7b"], vocab_size=320, d_model=64, d_ff=128, heads=4, kv_heads=4, head_size=16,
    max_length=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder with a checkpoint `decoder`, conversations `chats.jsonl`, and `pictures` with their
    captions."""
    folder = tmp_path_factory.mktemp("colab")
    save_checkpoint(folder / "decoder", DECODER, template=CHAT)
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes yes"}]
    write_rows(folder / "chats.jsonl", [{"messages": said}] * 60)
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for shade in range(0, 240, 2):
        place = folder / "pictures" / f"{shade}.png"
        place.write_bytes(png(np.full((8, 8, 3), shade, np.uint8)))
        # Words of any letters: names alike have too few pairs for a vocabulary of 1,024.
        words = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (6, 6))
        place.with_suffix(".txt").write_text(" ".join(map("".join, words)))
    return folder


@pytest.mark.filterwarnings("ignore")  # of the notebook machinery, in this process
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_top_to_bottom(path, small, tmp_path, monkeypatch):
    # As in this process: compiling is most of what the kernel and its runs do.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    arguments = {
        "qlora": f"task=chat,method=qlora,data={small / 'chats.jsonl'},smoke",
        "pictures_and_sound": f"task=contrastive,data={small / 'pictures'},smoke",
    }
    monkeypatch.setenv("GRAFT_NOTEBOOK_ARG", arguments.get(path.stem, "smoke"))
    monkeypatch.setenv("GRAFT_NOTEBOOK_SOURCE", str(small / "decoder"))
    monkeypatch.setenv("GRAFT_NOTEBOOK_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("XLA_FLAGS", "")
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
    assert len(pictures) == SHOWN[path.stem]
    if SHOWN[path.stem] == 2:  # the second is the report of a run
        assert (tmp_path / "run" / "report.html").exists()
        assert any((tmp_path / "run").rglob("metrics.jsonl"))


def _first_code(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


def _first_cell(repository: str) -> str:
    source = _first_code(ROOT / "colabs" / "quickstart.ipynb")
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
