"""Completions of code: what follows it, or fills a gap in it with a model that was trained to
(arXiv:2207.14255)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from research.apply.documents import Document
from research.apply.job import Job, Result
from research.apply.writer import Writer
from research.data.tokenizers import Tokenizer

GAP = "<FILL_ME>"  # the gap in a text, as transformers spells it for Code Llama
# The tokens in front of what is before the gap, of what is behind it, and of what fills it, in the
# order in which models read them: StarCoder, SantaCoder, Qwen and CodeGemma, Code Llama, DeepSeek.
SENTINELS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


@dataclass(frozen=True)
class Complete(Job):
    """`sentinels` are the ids of a row of `SENTINELS`, () for a tokenizer that has none."""

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
        """(ids that the model reads, tokens that were cut): of code the end, around a gap as much
        behind it as there is room for in a third."""
        before, gap, behind = text.partition(GAP)
        ids, rest = writer.tokenizer.encode(before), writer.tokenizer.encode(behind)
        room = max(16, writer.context - writer.sampling.max_tokens - len(self.sentinels) - 1)
        first = writer.tokenizer.bos_id if writer.sampling.bos else None
        start = [] if first is None else [first]
        if not gap:
            kept = ids[-room:]
            return [*start, *kept], len(ids) - len(kept)
        tail = rest[: max(room // 3, room - len(ids))]
        head = ids[-(room - len(tail)) :]
        one, two, three = self.sentinels
        cut = len(ids) + len(rest) - len(head) - len(tail)
        return [*start, one, *head, two, *tail, three], cut


def sentinels_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the first row of `SENTINELS` whose strings are a token each, () for none."""
    for row in SENTINELS:
        ids = [tokenizer.encode(name) for name in row]
        if all(len(one) == 1 for one in ids) and len({one[0] for one in ids}) == len(row):
            if all(tokenizer.decode(one) == name for one, name in zip(ids, row)):
                return tuple(one[0] for one in ids)
    return ()
