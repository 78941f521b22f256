"""Completions of code: what follows it, or fills a gap in it with a model that was trained to
(arXiv:2207.14255)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from research.apply.documents import Document
from research.apply.job import Job, Result
from research.apply.writer import Writer
from research.data.infill import gap_ids, sentinels_of

GAP = "<FILL_ME>"  # the gap in a text, as transformers spells it for Code Llama


@dataclass(frozen=True)
class Complete(Job):
    """`sentinels` are the ids of a row of `research.data.infill.SENTINELS`, () for a tokenizer that
    has none."""

    sentinels: tuple[int, ...] = ()

    max_tokens: ClassVar[int] = 128

    @classmethod
    def make(cls, flags: Mapping[str, Any], writer: Writer) -> "Complete":
        """ValueError for an encoder-decoder, which continues nothing."""
        if writer.two_sided:
            raise ValueError("an encoder-decoder continues no text; give a decoder")
        return cls(sentinels_of(writer.tokenizer))

    def input(self, document: Document) -> str:
        """The code, with `GAP` where something is to be filled in. ValueError for a gap that the
        model cannot fill."""
        text = document.text
        if isinstance(document.fields.get("prefix"), str):
            suffix = document.fields.get("suffix")
            text = document.fields["prefix"] + (f"{GAP}{suffix}" if isinstance(suffix, str) else "")
        if not text.strip():
            raise ValueError("has no text, and no prefix")
        if text.count(GAP) > 1:
            raise ValueError(f"has {text.count(GAP)} gaps {GAP}; one is filled at a time")
        if GAP in text and not self.sentinels:
            raise ValueError(
                "has a gap, and the tokenizer has no tokens to fill one in; take a model of code "
                "with <fim_prefix> or the like, or leave out what is behind the gap"
            )
        return text

    def run(self, documents: Sequence[Document], writer: Writer) -> list[Result]:
        """{"output"}: what follows, or fills the gap; and "cut", the tokens that the context had no
        room for, if any."""
        asked = [self._prompt(self.input(document), writer) for document in documents]
        written = writer.write([ids for ids, _ in asked])
        return [
            {"output": text} | ({"cut": cut} if cut else {})
            for text, (_, cut) in zip(written, asked)
        ]

    def _prompt(self, text: str, writer: Writer) -> tuple[list[int], int]:
        """(ids that the model reads, tokens that were cut): of code the end, around a gap as
        `gap_ids` has it."""
        before, gap, behind = text.partition(GAP)
        room = max(16, writer.context - writer.sampling.max_tokens - len(self.sentinels) - 1)
        first = writer.tokenizer.bos_id if writer.sampling.bos else None
        start = [] if first is None else [first]
        if not gap:
            ids = writer.tokenizer.encode(before)
            return [*start, *ids[-room:]], max(0, len(ids) - room)
        ids, cut = gap_ids(writer.tokenizer, self.sentinels, before, behind, room)
        return [*start, *ids], cut
