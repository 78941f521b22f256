"""999 instructions with their answers (Alpaca's, arXiv:2212.10560's method; Apache-2.0), from a
package of PyPI."""

import json
from pathlib import Path
from typing import Any

from research.data.documents import Documents
from research.data.files import FileDocuments
from research.downloads import pypi
from research.downloads.cache import built

# The source archive of LLaMA-Factory has them; its wheel has not.
PACKAGE = (
    "llamafactory==0.9.5",
    "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
)
_MEMBER = "llamafactory-0.9.5/data/alpaca_en_demo.json"


def open_alpaca(cache_dir: Path) -> tuple[Documents, None, dict[str, Any]]:
    """The conversations, fetched with pip once, without a held-out part of their own, and facts
    for the provenance. ValueError where they cannot be had."""
    requirement, sha256 = PACKAGE

    def write(directory: Path) -> None:
        [content] = pypi.members(
            pypi.fetch(requirement, sha256, cache_dir), _MEMBER.replace(".", r"\.")
        ).values()
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in json.loads(content))
        (directory / "alpaca.jsonl").write_text("".join(lines), encoding="utf-8")

    def check(directory: Path) -> Path:
        if not (directory / "alpaca.jsonl").is_file():
            raise FileNotFoundError(directory)
        return directory / "alpaca.jsonl"

    file = built(cache_dir / "alpaca" / sha256[:16], write, check)
    documents = FileDocuments(file, "", cache_dir, "conversations")
    return documents, None, {"package": requirement, "sha256": sha256}
