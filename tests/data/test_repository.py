"""Code by repositories: every file once, behind those that it imports."""

import ast
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.documents import TextDocuments, UnreadableRecord
from research.data.repository import Repositories, named, ordered, resolved
from research.data.sources import open_source

FILES = {
    "shop/a.py": "from shop.prices import (\n    price,\n    tax as t,\n)\n",
    "shop/prices.py": "from . import (\n    worth,  # as numbers\n)\n",
    "shop/worth.py": "import os, decimal",
    "web/main.ts": 'import { send } from "./net";\nimport React from "react";\n',
    "web/net.ts": "export const send = 1;\n",
    "web/z.c": '#include "lib/z.h"\n#include <stdio.h>\n',
    "web/lib/z.h": "int z;\n",
    "alone.py": "import shop",
}


def test_the_files_of_a_repository_are_one_text_under_their_paths():
    made = Repositories(TextDocuments(FILES))
    texts = {made[n]["path"]: made[n]["text"] for n in range(len(made))}
    assert list(made.identities()) == list(texts) == ["alone.py", "shop", "web"]
    assert texts["alone.py"] == "# alone.py\nimport shop\n"
    assert texts["shop"] == (
        f"# shop/worth.py\n{FILES['shop/worth.py']}\n"
        f"# shop/prices.py\n{FILES['shop/prices.py']}"
        f"# shop/a.py\n{FILES['shop/a.py']}"
    )
    names = [line[3:] for line in texts["web"].splitlines() if line.startswith("// ")]
    assert names == ["web/lib/z.h", "web/net.ts", "web/main.ts", "web/z.c"]


def test_pieces_of_a_long_file_stay_together():
    pieces = {"p/a.py[0:4]": "x=1\n", "p/a.py[4:8]": "y=2\n", "p/b.py": "from . import a"}
    assert Repositories(TextDocuments(pieces))[0]["text"] == (
        "# p/a.py\nx=1\ny=2\n# p/b.py\nfrom . import a\n"
    )


class Broken(TextDocuments):
    """Documents of which the first cannot be read."""

    def __getitem__(self, index):
        if index == 0:
            raise UnreadableRecord("a", 0, "it is broken")
        return super().__getitem__(index)


def test_a_file_that_cannot_be_read_is_one_record():
    made = Repositories(Broken({"p/a.py": "", "p/b.py": "x = 1\n"}))
    assert len(made) == 2 and made[1]["text"] == "# p/b.py\nx = 1\n"
    with pytest.raises(UnreadableRecord):
        made[0]


def test_files_in_no_folder_are_refused():
    with pytest.raises(ValueError, match="none of 2 files is in a folder"):
        Repositories(TextDocuments({"rows.jsonl:0": "a", "rows.jsonl:1": "b"}))


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11))))
def test_each_file_is_once_and_behind_what_it_needs(pairs):
    # From a higher number to a lower one there is no circle.
    needs = {f"{n:02}": {f"{min(p):02}" for p in pairs if max(p) == n != min(p)} for n in range(12)}
    place = {name: at for at, name in enumerate(ordered(needs))}
    assert sorted(place) == sorted(needs)
    assert all(place[one] < place[name] for name, wanted in needs.items() for one in wanted)


def test_a_circle_begins_with_the_file_that_needs_the_fewest():
    assert ordered({"a": {"b", "c"}, "b": {"a"}, "c": {"a", "b"}}) == ["b", "a", "c"]


@pytest.mark.parametrize("package", ["asyncio", "email", "xml"])
def test_the_imports_of_pythons_own_packages_are_all_found(package):
    root = Path(sysconfig.get_path("stdlib"))
    texts = {p.relative_to(root).as_posix(): p.read_text() for p in (root / package).rglob("*.py")}
    found = resolved({path: named(text, path) for path, text in texts.items()})
    wanted = {(path, one) for path, text in texts.items() for one in parsed(text, path) & {*texts}}
    missing = [(path, one) for path, one in wanted if one != path and one not in found[path]]
    assert len(wanted) > 20 and missing == []


def parsed(text: str, path: str) -> set[str]:
    """The files that Python's own parser says that a file of the library may import."""
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = path.split("/")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            modules |= {base} | {f"{base}.{one.name}" for one in node.names}
    paths = {module.replace(".", "/") for module in modules}
    return {f"{path}.py" for path in paths} | {f"{path}/__init__.py" for path in paths}


def test_whole_repositories_of_a_folder_are_held_out(tmp_path):
    for n in range(30):
        (tmp_path / f"code/r{n}").mkdir(parents=True)
        (tmp_path / f"code/r{n}/a.py").write_text(f"import b\n# {n}\n")
        (tmp_path / f"code/r{n}/b.py").write_text(f"x = {n}\n")
    source = open_source(f"repository:{tmp_path / 'code'}", tmp_path / "cache")
    texts = [part[n]["text"] for part in (source.train, source.heldout) for n in range(len(part))]
    assert len(texts) == 30 and len(source.heldout) >= 1
    assert all(text.index("b.py\n") < text.index("a.py\n") for text in texts)
    with pytest.raises(ValueError, match="are texts, and the objective reads pairs"):
        open_source(f"repository:{tmp_path / 'code'}", tmp_path / "cache", "pairs")
