"""Answers to questions from a folder of documents, with the passages that they rest on."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from research.apply.documents import Document, read_documents
from research.apply.job import Job, Result
from research.apply.progress import progress
from research.apply.writer import Writer
from research.data.documents import digest
from research.data.grounding import CUE, INSTRUCTION, NOTHING, grounded_text
from research.downloads.cache import cache_directory
from research.interop.load import load
from research.retrieval.citations import SIMILARITY, cite
from research.retrieval.knowledge import Hit, Knowledge, learn


@dataclass(frozen=True)
class Answer(Job):
    """Each question is answered from the `passages` nearest passages of the knowledge whose cosine
    is `similarity` or more, as many as the model has room for."""

    knowledge: Knowledge
    passages: int = 4
    similarity: float = SIMILARITY

    max_tokens: ClassVar[int] = 64

    @classmethod
    def make(cls, flags: Mapping[str, Any], writer: Writer) -> "Answer":
        """Reads the knowledge and makes the vectors that are missing. ValueError for none, and for
        an encoder-decoder, which follows no instruction."""
        if not flags["knowledge"]:
            raise ValueError("answers come from documents; give --knowledge=FOLDER")
        if writer.two_sided:
            raise ValueError("an encoder-decoder answers no question; give a decoder")
        writer.room(INSTRUCTION, CUE)
        return cls(
            open_knowledge(flags["knowledge"], flags["embedder"], flags["index"]),
            flags["passages"],
            flags["similarity"],
        )

    def input(self, document: Document) -> str:
        """The question."""
        if not document.text.strip():
            raise ValueError("has no question")
        return document.text

    def run(self, documents: Sequence[Document], writer: Writer) -> list[Result]:
        """{"output", "citations"}, see `cite`; and "refused", why no passage was read, if none
        was: the model is not asked then."""
        questions = [document.text for document in documents]
        found = self.knowledge.find(questions, self.passages)
        read = [self._fitting(question, hits, writer) for question, hits in zip(questions, found)]
        prompts = [
            writer.prompt(INSTRUCTION, _text(question, hits), CUE)
            for question, hits in zip(questions, read)
            if hits
        ]
        written = iter(writer.write(prompts) if prompts else [])
        return [
            self._result(next(written), hits) if hits else self._refusal(near)
            for hits, near in zip(read, found)
        ]

    def _fitting(self, question: str, hits: Sequence[Hit], writer: Writer) -> list[Hit]:
        """The passages that are near enough and fit beside the question, the nearest first."""
        room = writer.room(INSTRUCTION, CUE)
        near = [hit for hit in hits if hit.similarity >= self.similarity]
        while near and writer.count(_text(question, near)) > room:
            near.pop()
            if not near:
                raise ValueError(
                    f"the question and a passage are more than {room} tokens; raise --window"
                )
        return near

    def _result(self, written: str, hits: Sequence[Hit]) -> dict[str, Any]:
        answer, citations = cite(written, hits)
        return {"output": answer, "citations": citations}

    def _refusal(self, near: Sequence[Hit]) -> dict[str, Any]:
        best = near[0].similarity
        reason = (
            f"the nearest passage has a similarity of {best:.2f}, below --similarity="
            f"{self.similarity:g}"
        )
        return {"output": NOTHING, "citations": [], "refused": reason}

    def report(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """cited: share of the answers that name a passage; refused: questions that no passage
        fits."""
        answers = [row for row in rows if "refused" not in row]
        numbers = {"refused": float(len(rows) - len(answers))}
        if answers:
            numbers["cited"] = sum(bool(row["citations"]) for row in answers) / len(answers)
        return numbers


def open_knowledge(place: str, embedder: str, folder: str) -> Knowledge:
    """The knowledge of a file or folder, see `research.retrieval.knowledge.learn`. Vectors are kept
    in `folder`, "" for one in the cache. What cannot be read is left out with a line on standard
    error."""
    documents = []
    for one in read_documents(place, sys.stdin.buffer, "--knowledge"):
        if isinstance(one, Document):
            documents.append((one.source, one.text))
        else:
            print(f"left out {one.source} of --knowledge: {one.reason}", file=sys.stderr)
    absolute = str(Path(place).expanduser().absolute())
    kept = cache_directory() / "knowledge" / digest(absolute, embedder)[:32]
    encoder = load(embedder)
    index = Path(folder).expanduser() if folder else kept
    with progress("passages") as tell:
        return learn(documents, encoder, embedder, index, tell)


def _text(question: str, hits: Sequence[Hit]) -> str:
    return grounded_text(question, [hit.passage.text for hit in hits])
