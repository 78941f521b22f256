"""Summaries: of a long document by map and reduce over windows of it (arXiv:2109.10862, section 2:
summaries of parts, then of those)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from research.apply.documents import Document
from research.apply.job import Job, Result
from research.apply.writer import Writer
from research.data.pieces import pieces
from research.experiment.fields import nearest

# By --style: what a chat model is told. Of other models the cue is that of GPT-2's paper, section
# 3.6, and of T5's (arXiv:1910.10683, appendix D).
STYLES = {
    "summary": "Summarize the following text in a few sentences.",
    "headline": "Write one short headline for the following text. Answer with the headline alone.",
    "bullets": "Summarize the following text as three to five short bullet points, each on a line "
    "of its own that begins with '- '.",
}
_PART = "Summarize the following part of a longer text in a few sentences."
_CUE, _CUE_OF_T5 = "\n\nTL;DR:", "summarize: "
_MOST_ROUNDS = 8


@dataclass(frozen=True)
class Summarize(Job):
    """`style` is a key of `STYLES`."""

    style: str = "summary"

    max_tokens: ClassVar[int] = 128

    @classmethod
    def make(cls, flags: Mapping[str, Any], writer: Writer) -> "Summarize":
        """ValueError for an unknown style, and for a window that holds too little of a text."""
        style = flags["style"] or "summary"
        if style not in STYLES:
            raise ValueError(f"--style={style}: {nearest(style, STYLES)}")
        # Parts must come out shorter than they were, or no number of rounds would end.
        if writer.room(STYLES[style], _cue(writer)) < 2 * writer.sampling.max_tokens:
            raise ValueError(
                f"a window of {writer.context} tokens holds less than two summaries of "
                f"--max_tokens={writer.sampling.max_tokens}; lower it or raise --window"
            )
        return cls(style)

    def input(self, document: Document) -> str:
        """The text."""
        if not document.text.strip():
            raise ValueError("has no text")
        return document.text

    def run(self, documents: Sequence[Document], writer: Writer) -> list[Result]:
        """{"output", "windows": parts that the document was read in}."""
        texts = [document.text for document in documents]
        windows = [1] * len(texts)
        room = writer.room(_PART, _cue(writer))
        for turn in range(_MOST_ROUNDS):
            parts = [pieces(text, room, writer.count) for text in texts]
            if turn == 0:
                windows = [len(part) for part in parts]
            long = [n for n, part in enumerate(parts) if len(part) > 1]
            if not long:
                break
            # The parts of all documents together: batches are full, and each stands for itself.
            written = iter(self._write(_PART, [p for n in long for p in parts[n]], writer))
            for n in long:
                texts[n] = "\n\n".join(next(written) for _ in parts[n])
        written = self._write(
            STYLES[self.style], [t[: _letters(t, room, writer)] for t in texts], writer
        )
        return [
            {"output": self._form(text), "windows": count} for text, count in zip(written, windows)
        ]

    def _write(self, instruction: str, texts: Sequence[str], writer: Writer) -> list[str]:
        prompts = [writer.prompt(instruction, text.strip(), _cue(writer)) for text in texts]
        return [text.strip() for text in writer.write(prompts)]

    def _form(self, text: str) -> str:
        """The text in the form of the style: one line of a headline."""
        if self.style != "headline":
            return text
        lines = [line.strip(" #*\"'“”") for line in text.splitlines()]
        return next((line for line in lines if line), "")


def _letters(text: str, room: int, writer: Writer) -> int:
    """Characters of a text that fit, all of them but where a model would not shorten its parts."""
    return len(text) if writer.count(text) <= room else len(pieces(text, room, writer.count)[0])


def _cue(writer: Writer) -> str:
    return _CUE_OF_T5 if writer.two_sided else _CUE
