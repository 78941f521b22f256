"""The documentation: every module, command and config has its place, and every link one target."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from research import shipped
from research.site import build, pages
from research.site.markdown import from_docstring
from research.site.modules import first_sentence, read_module
from research.usage import command_files
from tests.configs import ROOT

COMMANDS = [name for name, _ in command_files(ROOT / "research")]


@pytest.fixture(scope="module")
def site() -> dict[str, str]:
    """The Markdown of every page by its path; what the commands say is not asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "help_texts", lambda names: {n: f"{n}\n\nFlags:\n  -h" for n in names})
        return {page.path: page.text for page in pages.pages()}


def _targets(text: str) -> list[str]:
    return re.findall(r"^\(([\w./-]+)\)=$", text, re.MULTILINE)


def test_every_link_has_one_target(site):
    targets = [target for text in site.values() for target in _targets(text)]
    assert len(targets) == len(set(targets)) > 500
    links = {link for text in site.values() for link in re.findall(r"\]\(#([^)]+)\)", text)}
    assert len(links) > 100 and links <= set(targets)
    for text in site.values():
        for link in re.findall(r"\]\(/([^)]+)\.md\)", text):
            assert link in site


def test_every_module_command_and_config_has_its_place(site):
    targets = {target for text in site.values() for target in _targets(text)}
    modules = {read_module(file).name for file in (ROOT / "research").rglob("*.py")}
    assert modules <= targets
    assert {f"command-{name}" for name in COMMANDS} <= targets
    assert {f"config-{name}" for name in shipped.configs()} <= targets
    named = {name for names in pages.JOBS.values() for name in names}
    assert set(COMMANDS) - named == {"site"}  # what a person may want to do names every command


def test_the_table_of_contents_has_every_page(site, tmp_path):
    build.write_sources((pages.Page(path, text) for path, text in site.items()), tmp_path)
    contents = (tmp_path / "index.md").read_text().splitlines()
    assert sorted(line for line in contents if line in site) == sorted(site)


@pytest.mark.parametrize(
    "docstring, markdown",
    [
        ("A `tree`, see `research.tree`.", "A `tree`, see [`research.tree`](#T)."),
        ("Two * signs _here_ and <x>.", r"Two \* signs \_here\_ and \<x\>."),
        ("Code:\n\n    a = 1\n\n    b = 2\n\nEnd", "Code:\n\n```text\na = 1\n\nb = 2\n```\n\nEnd"),
        ("rank  of A\n      and B\nbias  its", "```text\nrank  of A\n      and B\nbias  its\n```"),
        ("# no heading", r"\# no heading"),
    ],
)  # fmt: skip
def test_docstrings_as_markdown(docstring, markdown):
    assert from_docstring(docstring, {"research.tree": "T"}.get) == markdown


def test_signatures_and_fields(tmp_path, monkeypatch):
    file = tmp_path / "research" / "some.py"
    file.parent.mkdir()
    file.write_text(
        '"""Does it: python -m research.some\n\nMore."""\n'
        'class A(NamedTuple):\n    """An A."""\n    x: int = 1\n'
        '    def go(self, /, *rest, k: int = 2, **more) -> int:\n        """Goes."""\n'
        '    def _own(self):\n        """No."""\n'
        f'def long({", ".join(f"argument_{i}: int" for i in range(9))}):\n    """Long."""\n'
    )
    monkeypatch.setattr("research.site.modules.ROOT", tmp_path)
    module = read_module(file)
    assert (module.name, first_sentence(module.text)) == ("research.some", "Does it")
    record, method, function = module.entries
    assert record.code == "class A(NamedTuple):\n    x: int = 1"
    assert method[:2] == ("A.go", "def go(self, /, *rest, k: int=2, **more) -> int")
    assert function.code.splitlines()[1] == "    argument_0: int,"


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("furo"), reason="needs the extra site: pip install -e '.[site]'")
def test_sphinx_builds_it_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "research.site", f"--target={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = (tmp_path / "commands" / "train.html").read_text()
    assert "--workdir" in train and "searchindex" not in train
    generate = (tmp_path / "commands" / "generate.html").read_text()
    assert "–workdir" not in generate  # typeset, no shell would take it
    assert "optimizer" in (tmp_path / "searchindex.js").read_text()
