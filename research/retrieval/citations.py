"""The passages that an answer rests on: those that it names, or the one that says it."""

import re
from collections.abc import Sequence
from typing import Any

from research.data.grounding import NOTHING
from research.retrieval.knowledge import Hit

# The least cosine of a passage that fits a question. MiniLM's cosines of a question and a passage
# that answers it are mostly above 0.5, of unrelated ones below 0.2.
SIMILARITY = 0.35
_MARK = re.compile(r"\s*\[(\d{1,3})\]")


def cite(written: str, hits: Sequence[Hit]) -> tuple[str, list[dict[str, Any]]]:
    """(the answer without marks, its citations), of what was written beside numbered passages.

    A citation is {"source", "start", "stop", "text", "similarity", "marked"}. They are the passages
    that the answer marks as [1]. Where it marks none, it is the one passage that has most of the
    answer's words, as attribution after the fact (arXiv:2210.08726) does: `marked` is then false.
    """
    numbers = dict.fromkeys(int(number) - 1 for number in _MARK.findall(written))
    marked = [number for number in numbers if 0 <= number < len(hits)]
    answer = _MARK.sub("", written).strip()
    if not answer or answer.strip('". ') == NOTHING.strip("."):
        return answer, []
    chosen = marked or _nearest(answer, hits)
    return answer, [_citation(hits[number], bool(marked)) for number in chosen]


def _nearest(answer: str, hits: Sequence[Hit]) -> list[int]:
    words = set(re.findall(r"\w+", answer.lower()))
    shared = [
        len(words & set(re.findall(r"\w+", hit.passage.text.lower()))) / max(len(words), 1)
        for hit in hits
    ]
    best = max(range(len(hits)), key=lambda n: (shared[n], -n), default=None)
    # Half of the words at least: an answer that no passage says has no source.
    return [best] if best is not None and shared[best] >= 0.5 else []


def _citation(hit: Hit, marked: bool) -> dict[str, Any]:
    one = hit.passage
    told = {"source": one.source, "start": one.start, "stop": one.stop, "text": one.text}
    return {**told, "similarity": round(hit.similarity, 4), "marked": marked}
