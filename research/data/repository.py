"""Code by repositories: the files of one in a document, each behind those that it imports, so that
a window holds a file together with what it uses (DeepSeek-Coder, arXiv:2401.14196, section 2.2)."""

import heapq
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping

from research.data.documents import Documents, UnreadableRecord, digest

_FORMAT = "1"  # part of the fingerprint: raise it when other texts are made
# Suffixes of languages whose comments begin with "#"; those of the others with "//".
_HASH = frozenset((".py", ".pyi", ".sh", ".rb", ".pl", ".r", ".jl", ".yaml", ".yml", ".toml"))
# Long text files are read in pieces, which are named by their bytes: "a/b.py[0:262144]".
_PIECE = re.compile(r"\[\d+:\d+\]$")
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]+)|import[ \t]+([\w., \t]+))",
    re.MULTILINE,
)
_QUOTED = re.compile(
    r"""^[ \t]*(?:\#[ \t]*include|import|export|const|let|var|require\w*)\b[^\n"']*"""
    r"""["']([^"'\n]+)["']""",
    re.MULTILINE,
)
_ENDINGS = ("", ".js", ".ts", ".jsx", ".tsx", "/index.js", "/index.ts")


class Repositories:
    """Documents in which the files of a repository follow each other, each under a comment with its
    path. The repository of a file is the first folder of its path; a file that is in none is one
    of its own, and so is a record that cannot be read. ValueError where no file is in a folder."""

    fields = ("text",)

    def __init__(self, documents: Documents):
        self._documents, self.rules = documents, 2
        self.fingerprint = digest("repositories", _FORMAT, documents.fingerprint)
        # Documents by their files' paths by repository, in the documents' order.
        found: dict[str, dict[str, list[int]]] = {}
        needs: dict[str, dict[str, set[str]]] = {}
        for index in range(len(documents)):
            try:
                document = documents[index]
            except UnreadableRecord:  # a place of its own, at which it is counted as such
                found[f"unreadable:{index}"] = {"": [index]}
                continue
            path = _PIECE.sub("", document["path"])
            name = path.split("/")[0]
            found.setdefault(name, {}).setdefault(path, []).append(index)
            needs.setdefault(name, {}).setdefault(path, set()).update(named(document["text"], path))
        if all(name in files for name, files in needs.items()):
            raise ValueError(
                f"none of {len(documents)} files is in a folder, which would be its repository; "
                "give repository: a folder of repositories, or the source without it"
            )
        for name in found.keys() - needs.keys():
            needs[name] = {"": set()}
        self._places = [
            (name, [(path, files[path]) for path in ordered(resolved(needs[name]))])
            for name, files in found.items()
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, str]:
        name, files = self._places[index]
        texts = [marked(path, self._whole(places)) for path, places in files]
        return {"text": "".join(texts), "path": name}

    def identities(self) -> Iterator[str]:
        """The names of the repositories, in order."""
        return (name for name, _ in self._places)

    def _whole(self, places: Iterable[int]) -> str:
        return "".join(self._documents[place]["text"] for place in places)


def marked(path: str, text: str) -> str:
    """A file's text under a comment with its path, ending in a line end.

    >>> marked("a/b.py", "x = 1")
    '# a/b.py\\nx = 1\\n'
    """
    sign = "#" if posixpath.splitext(path)[1].lower() in _HASH else "//"
    return f"{sign} {path}\n{text}" + ("" if text.endswith("\n") else "\n")


def named(text: str, path: str) -> set[str]:
    """What a file may import: paths without the part that only a search finds. Those that begin
    with "/" are from the data's folder on, the others the ends of paths. Python's imports, and what
    C and JavaScript quote.

    >>> sorted(named("from . import b\\nimport c.d as e", "p/a.py"))
    ['/p.py', '/p/__init__.py', '/p/b.py', '/p/b/__init__.py', 'c/d.py', 'c/d/__init__.py']
    """
    folder = posixpath.dirname(path)
    modules: set[str] = set()
    if path.endswith((".py", ".pyi")):
        for source, names, plain in _IMPORT.findall(text):
            if plain:
                modules |= {one.replace(".", "/") for one in _first_words(plain)}
                continue
            parent = _module(source, folder)
            modules |= {parent}
            modules |= {posixpath.join(parent, one) for one in _first_words(names.strip("()"))}
        return {module + end for module in modules for end in (".py", "/__init__.py")}
    for quoted in _QUOTED.findall(text):
        beside = "/" + posixpath.normpath(posixpath.join(folder, quoted))
        modules |= {beside} if quoted.startswith(".") else {beside, quoted}
    return {module + end for module in modules for end in _ENDINGS}


def _module(source: str, folder: str) -> str:
    """The path of a module of `from SOURCE import`, without its ending."""
    rest = source.lstrip(".")
    dots = len(source) - len(rest)
    if not dots:
        return rest.replace(".", "/")
    base = [part for part in folder.split("/") if part]
    base = base[: max(0, len(base) - dots + 1)]
    return "/" + "/".join([*base, *(rest.split(".") if rest else ())])


def _first_words(names: str) -> set[str]:
    return {part.split()[0] for part in names.split(",") if part.split()}


def resolved(needs: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Of each file the files of its repository that it imports, of what `named` gives for them."""
    ends: dict[str, str] = {}
    for path in sorted(needs, key=lambda one: (one.count("/"), one)):
        parts = path.split("/")
        for start in range(len(parts)):
            # Of several files with one end the shortest path.
            ends.setdefault("/".join(parts[start:]), path)
    return {
        path: {
            found
            for one in wanted
            if (found := one[1:] if one[1:] in needs and one[0] == "/" else ends.get(one))
            and found != path
        }
        for path, wanted in needs.items()
    }


def ordered(needs: Mapping[str, set[str]]) -> list[str]:
    """The files so that each comes behind those that it needs; in a circle first the one that needs
    the fewest of those that are left (the paper's algorithm 1). Else in the order of their names.

    >>> ordered({"a": {"b"}, "b": {"c"}, "c": set(), "d": set()})
    ['c', 'b', 'a', 'd']
    """
    left = {name: set(wanted) for name, wanted in needs.items()}
    users: dict[str, list[str]] = {}
    for name, wanted in needs.items():
        for one in wanted:
            users.setdefault(one, []).append(name)
    waiting = [(len(wanted), name) for name, wanted in left.items()]
    heapq.heapify(waiting)
    order: dict[str, None] = {}
    while waiting:
        count, name = heapq.heappop(waiting)
        if name in order or count != len(left[name]):
            continue
        order[name] = None
        for user in users.get(name, ()):
            left[user].discard(name)
            heapq.heappush(waiting, (len(left[user]), user))
    return list(order)
