"""Answers from passages: what a model reads, and the passages that an answer rests on."""

import re
from collections.abc import Sequence
from typing import Any

from research.retrieval.knowledge import Hit

NOTHING = "I found nothing about this in the documents."
# The least cosine of a passage that fits a question. MiniLM's cosines of a question and a passage
# that answers it are mostly above 0.5, of unrelated ones below 0.2.
SIMILARITY = 0.35
INSTRUCTION = (
    "Answer the question in a few words, with what the passages say and nothing else. Put the "
    "number of the passage that you used behind the answer, as in [1]. If the passages do not "
    f'answer it, write: "{NOTHING}"'
)
CUE = "\nAnswer:"
_MARK = re.compile(r"\s*\[(\d{1,3})\]")


def grounded_text(question: str, passages: Sequence[str]) -> str:
    """The numbered passages and the question, as the model reads them after `INSTRUCTION`."""
    numbered = [f"[{n}] {' '.join(text.split())}" for n, text in enumerate(passages, 1)]
    return "\n\n".join([*numbered, f"Question: {question.strip()}"])


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
