"""The source "emoji": 1,636 pictures of Twemoji with their names (art CC-BY 4.0, data MIT), without
flags, whose names no picture tells.

Held out are whole groups: pictures whose names are the same but for who is shown, as in "man cook"
and "woman cook", are on one side, and so a held-out name is of something that no training picture
shows. About one group in eight is held out, by the hash of its name.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from research.data.documents import Documents, Subset, digest
from research.data.files import FileDocuments
from research.downloads import npm, pypi
from research.downloads.cache import built

PACKAGE = (
    "emoji-datasource-twitter@16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)
_WHO = re.compile(r"\b(man|men|woman|women|male|female|persons?|people|boys?|girls?)\b")
_LEFT_OUT = frozenset(("Flags", "Component"))
_FORMAT = "1"  # part of the folder's name: raise it when the records change
HELDOUT_ONE_IN = 8


def open_emoji(cache_dir: Path) -> tuple[Documents, Documents, dict[str, Any]]:
    """(captions, those of held-out groups, facts for the provenance). Downloaded with npm once.
    ValueError if the download fails."""
    requirement, sha256 = PACKAGE
    place = cache_dir / "emoji" / f"{_FORMAT}-{sha256[:16]}"
    folder = built(place, lambda made: _write(made, cache_dir), _check)
    documents = FileDocuments(folder / "names.jsonl", "", cache_dir, "captions")
    groups = [group(documents[index]["text"]) for index in range(len(documents))]
    held = np.array([int(digest(name)[:16], 16) % HELDOUT_ONE_IN == 0 for name in groups])
    count = len({name for name, chosen in zip(groups, held) if chosen})
    facts = {"package": requirement, "sha256": sha256, "heldout_groups": count}
    return (
        Subset(documents, np.flatnonzero(~held)),
        Subset(documents, np.flatnonzero(held)),
        facts,
    )


def group(name: str) -> str:
    """A name without who is shown.

    >>> group("woman cook") == group("man cook") == "cook"
    True
    """
    return " ".join(_WHO.sub(" ", name.lower()).split()) or name


def _write(folder: Path, cache_dir: Path) -> None:
    archive = npm.fetch(*PACKAGE, cache_dir)
    [listed] = pypi.members(archive, r"package/emoji\.json").values()
    files = pypi.members(archive, r"package/img/twitter/64/[-0-9a-f]+\.png")
    pictures = {name.rsplit("/", 1)[-1]: content for name, content in files.items()}
    lines = []
    for emoji in json.loads(listed):
        if emoji["category"] in _LEFT_OUT or emoji["image"] not in pictures:
            continue
        (folder / emoji["image"]).write_bytes(pictures[emoji["image"]])
        record = {"image": emoji["image"], "text": emoji["name"].lower()}
        lines.append(json.dumps(record) + "\n")
    (folder / "names.jsonl").write_text("".join(lines))


def _check(folder: Path) -> Path:
    if not (folder / "names.jsonl").is_file():
        raise FileNotFoundError(folder)
    return folder
