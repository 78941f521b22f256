"""Translations: by an encoder-decoder trained on pairs, or by a decoder that is told to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from research.apply.documents import Document
from research.apply.job import Job, Result
from research.apply.writer import Writer
from research.data.pieces import pieces


@dataclass(frozen=True)
class Translate(Job):
    """From one language to another, by their names in English. An encoder-decoder has learnt both
    from its pairs; T5 wants to be told, as "translate English to German: " (arXiv:1910.10683,
    appendix D), which is `prefix`."""

    source: str = ""
    target: str = ""
    prefix: str = ""

    max_tokens: ClassVar[int] = 256

    @classmethod
    def make(cls, flags: Mapping[str, Any], writer: Writer) -> "Translate":
        """ValueError without a language to translate to, which a decoder has to be told."""
        source, target = flags["from_language"], flags["to_language"]
        if not writer.two_sided and not target:
            raise ValueError("a decoder has to be told what to write; give --to_language=German")
        named = bool(source and target and writer.two_sided)
        return cls(source, target, f"translate {source} to {target}: " if named else "")

    def input(self, document: Document) -> str:
        """The text."""
        if not document.text.strip():
            raise ValueError("has no text")
        return document.text

    def run(self, documents: Sequence[Document], writer: Writer) -> list[Result]:
        """{"output"}: the translation, line for line where the text has lines."""
        start = f" from {self.source}" if self.source else ""
        instruction = (
            f"Translate the following text{start} to {self.target}. Answer with the translation "
            "alone."
        )
        cue = self.prefix if writer.two_sided else f"\n\n{self.target}:"
        # What is written is about as long as what is read, so no piece is longer than an output.
        room = min(writer.room(instruction, cue), max(16, writer.sampling.max_tokens // 2))
        parts = [
            [
                piece
                for line in one.text.splitlines(True)
                for piece in pieces(line, room, writer.count)
            ]
            for one in documents
        ]
        said = [piece for part in parts for piece in part if piece.strip()]
        prompts = [writer.prompt(instruction, piece.strip(), cue) for piece in said]
        written = iter(writer.write(prompts) if prompts else [])
        return [{"output": "".join(_in_place(p, written) for p in part)} for part in parts]


def _in_place(piece: str, written: Any) -> str:
    """The translation of a piece between the spaces that stood around it."""
    if not piece.strip():
        return piece
    inner = next(written).strip()
    before = piece[: len(piece) - len(piece.lstrip())]
    return f"{before}{inner}{piece[len(piece.rstrip()) :]}"
