"""The shapes in which steps are compiled.

A step's tokens, texts and pages are rounded up to one of a few shapes, so that the number of
programs has a bound that is known before any request comes. Within a shape a text's numbers do not
depend on what else is in the step, bit for bit; between shapes products may sum in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEAST_CHUNK = 16  # tokens; below it a product reads its weights, which take as long for 16 as for 1
LEAST_KEYS = 128  # tokens
TOGETHER = 1024  # tokens that fill a processor, however many are read of one text
LEAST_TOGETHER = 32  # tokens of each of many texts


@dataclass(frozen=True)
class Shape:
    """The shape of a step: texts that go on, tokens of each text that is read, 0 where none is,
    pages in the table of each text, whether the tokens that are read get their log-probabilities,
    how many tokens are guessed ahead for each text that goes on, and how many texts are read."""

    singles: int
    chunk: int
    pages: int
    scored: bool = False
    drafts: int = 0
    reads: int = 1

    @property
    def each(self) -> int:
        """Tokens of each text that goes on."""
        return 1 + self.drafts

    @property
    def tokens(self) -> int:
        """Tokens of the step's flat row."""
        return self.unread + self.read * self.chunk

    @property
    def unread(self) -> int:
        """Tokens of the texts that go on; those that are read are behind them."""
        return self.singles * self.each

    @property
    def read(self) -> int:
        """Texts that are read."""
        return self.reads if self.chunk else 0

    @property
    def drawn(self) -> int:
        """Tokens that are drawn in the step."""
        return self.unread + self.read

    @property
    def texts(self) -> int:
        """Rows of the step's table."""
        return self.singles + self.read


@dataclass(frozen=True)
class Shapes:
    """What steps are rounded up to: `rows` texts at most, `chunk` tokens read at most, of one text
    or in equal parts of several, `pages` of a text at most, of `page_size` tokens each; `least`
    texts that go on where there is any; `drafts` tokens guessed ahead where any text has a guess,
    and nothing is read beside.

    `few`: `rows` texts go on and `pages` are looked at in every step. Read are `chunk` tokens of
    one text, or of as many as have `TOGETHER` tokens, or a few tokens of all: those behind a
    beginning that they share. These are two to four programs, which do more than a small step
    needs, for a batch that is written once."""

    rows: int
    chunk: int
    pages: int
    page_size: int
    least: int = 1
    drafts: int = 0
    few: bool = False

    def fit(
        self,
        singles: int,
        chunks: Sequence[int],
        pages: int,
        scored: bool = False,
        drafts: bool = False,
    ) -> Shape:
        """The smallest shape for this many texts that go on, tokens of the texts that are read, and
        pages of one text, with or without drafts."""
        pages = _least(self._pages(), pages)
        if not chunks:
            singles = _least(self._singles(), singles)
            return Shape(singles, 0, pages, scored, self.drafts if drafts else 0)
        wide = [(r, c) for r, c in self.parts() if r >= len(chunks) and c >= max(chunks)]
        reads, chunk = min(wide, key=lambda part: (part[0] * part[1], part[0]))
        return Shape(_least(self._beside(reads), singles), chunk, pages, scored, reads=reads)

    def parts(self) -> list[tuple[int, int]]:
        """How many texts may be read in a step, and how many tokens of each."""
        if self.few:
            sizes = sorted({self.chunk, min(self.chunk, LEAST_TOGETHER)}, reverse=True)
            parts = [(min(self.rows, TOGETHER // size), size) for size in sizes]
            return [(1, self.chunk), *(part for part in parts if part[0] > 1)]
        several = [r for r in _doubled(min(2, self.rows), self.rows, 4) if r > 1]
        parts = [(r, self.chunk // r) for r in several if self.chunk // r >= LEAST_CHUNK]
        return [*((1, chunk) for chunk in self._chunks()), *parts]

    def all(self) -> Iterator[Shape]:
        """Every shape that `fit` may give, those without log-probabilities of what is read
        first."""
        for scored in (False, True):
            for pages in self._pages():
                if not scored:
                    for drafts in sorted({0, self.drafts}):
                        yield from (Shape(s, 0, pages, False, drafts) for s in self._singles())
                for reads, chunk in self.parts():
                    for singles in self._beside(reads):
                        yield Shape(singles, chunk, pages, scored, reads=reads)

    def _singles(self) -> list[int]:
        return _doubled(self.rows if self.few else min(self.least, self.rows), self.rows, 2)

    def _beside(self, reads: int) -> list[int]:
        # Few of them: beside what a chunk costs a few rows without a text are little.
        if self.few or reads > 1:
            return [self.rows]
        return [0, *_doubled(min(8, self.rows), self.rows, 8)]

    def _chunks(self) -> list[int]:
        return _doubled(min(LEAST_CHUNK, self.chunk), self.chunk, 8)

    def _pages(self) -> list[int]:
        least = self.pages if self.few else min(-(-LEAST_KEYS // self.page_size), self.pages)
        return _doubled(least, self.pages, 2)


def _doubled(first: int, last: int, factor: int) -> list[int]:
    """`first` times powers of `factor` below `last`, and `last`."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(sizes[-1] * factor, last))
    return sizes


def _least(sizes: list[int], wanted: int) -> int:
    """The least of ascending sizes that is at least `wanted`."""
    return next(size for size in sizes if size >= wanted)
