"""Texts by briefs: what a text is about, its length, words, tone and format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from research.apply.documents import Document
from research.apply.job import Job, Result
from research.apply.writer import Writer
from research.data.brief import read_brief


@dataclass(frozen=True)
class Write(Job):
    """Of `tries` texts the first one that meets the most constraints."""

    tries: int = 1

    max_tokens: ClassVar[int] = 256
    temperature: ClassVar[float] = 0.7

    @classmethod
    def make(cls, flags: Mapping[str, Any], writer: Writer) -> "Write":
        """ValueError for several tries that would all be the same text."""
        tries = flags["tries"]
        if tries > 1 and writer.sampling.temperature == 0:
            raise ValueError(f"--tries={tries} are one text at --temperature=0; raise it")
        return cls(tries)

    def input(self, document: Document) -> str:
        """The brief as it is put to the model."""
        return read_brief(document.text, document.fields).instruction()

    def run(self, documents: Sequence[Document], writer: Writer) -> list[Result]:
        """{"output", "constraints": {name: met}, "tries"}."""
        briefs = [read_brief(one.text, one.fields) for one in documents]
        best: list[dict[str, Any]] = [{} for _ in briefs]
        open_ = list(range(len(briefs)))
        for turn in range(self.tries):
            requests = [briefs[n].instruction() for n in open_]
            # A model without a chat template goes on from the request itself.
            prompts = [
                writer.prompt(one, "", "") if writer.chats else writer.prompt("", f"{one}\n\n", "")
                for one in requests
            ]
            for n, text in zip(open_, writer.write(prompts, seed=turn)):
                met = briefs[n].met(text.strip())
                row = {"output": text.strip(), "constraints": met, "tries": turn + 1}
                if not best[n] or sum(met.values()) > sum(best[n]["constraints"].values()):
                    best[n] = row
            open_ = [n for n in open_ if not all(best[n]["constraints"].values())]
            if not open_:
                break
        return list(best)

    def report(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """constraints_met: share of all constraints; distinct_2: pairs of words that differ, of all
        (arXiv:1510.03055, section 5.2); duplicates: texts that are there already."""
        met = [value for row in rows for value in row["constraints"].values()]
        texts = [row["output"] for row in rows]
        pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:])]
        numbers = {"duplicates": float(len(texts) - len(set(texts)))}
        if met:
            numbers["constraints_met"] = sum(met) / len(met)
        if pairs:
            numbers["distinct_2"] = len(set(pairs)) / len(pairs)
        return numbers
