"""The shapes in which steps are compiled.

A step's tokens, texts and pages are rounded up to one of a few shapes, so that the number of
programs has a bound that is known before any request comes. Within a shape a text's numbers do not
depend on what else is in the step, bit for bit; between shapes products may sum in another order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

LEAST_CHUNK = 16  # tokens; below it a product reads its weights, which take as long for 16 as for 1
LEAST_KEYS = 128  # tokens


@dataclass(frozen=True)
class Shape:
    """The shape of a step: texts that go on, tokens of the text that is read, pages in the table of
    each text, whether the tokens that are read get their log-probabilities, and how many tokens are
    guessed ahead for each text that goes on."""

    singles: int
    chunk: int
    pages: int
    scored: bool = False
    drafts: int = 0

    @property
    def each(self) -> int:
        """Tokens of each text that goes on."""
        return 1 + self.drafts

    @property
    def tokens(self) -> int:
        """Tokens of the step's flat row."""
        return self.singles * self.each + self.chunk

    @property
    def drawn(self) -> int:
        """Tokens that are drawn in the step."""
        return self.singles * self.each + (self.chunk > 0)

    @property
    def texts(self) -> int:
        """Rows of the step's table."""
        return self.singles + (self.chunk > 0)


@dataclass(frozen=True)
class Shapes:
    """What steps are rounded up to: `rows` texts at most, `chunk` tokens read at most, `pages` of a
    text at most, of `page_size` tokens each; `least` texts that go on where there is any; `drafts`
    tokens guessed ahead where any text has a guess, and nothing is read beside."""

    rows: int
    chunk: int
    pages: int
    page_size: int
    least: int = 1
    drafts: int = 0

    def fit(
        self, singles: int, chunk: int, pages: int, scored: bool = False, drafts: bool = False
    ) -> Shape:
        """The smallest shape for this many texts that go on, tokens read and pages of one text,
        with or without drafts."""
        if chunk:
            singles, chunk = _least(self._beside(), singles), _least(self._chunks(), chunk)
        else:
            singles = _least(self._singles(), singles)
        return Shape(
            singles, chunk, _least(self._pages(), pages), scored, self.drafts if drafts else 0
        )

    def all(self) -> Iterator[Shape]:
        """Every shape that `fit` may give, those without log-probabilities of what is read
        first."""
        for scored in (False, True):
            for pages in self._pages():
                if not scored:
                    for drafts in sorted({0, self.drafts}):
                        yield from (Shape(s, 0, pages, False, drafts) for s in self._singles())
                for chunk in self._chunks():
                    yield from (Shape(s, chunk, pages, scored) for s in self._beside())

    def _singles(self) -> list[int]:
        return _doubled(min(self.least, self.rows), self.rows, 2)

    def _beside(self) -> list[int]:
        # Few of them: beside what a chunk costs a few rows without a text are little.
        return [0, *_doubled(min(8, self.rows), self.rows, 8)]

    def _chunks(self) -> list[int]:
        return _doubled(min(LEAST_CHUNK, self.chunk), self.chunk, 8)

    def _pages(self) -> list[int]:
        return _doubled(min(-(-LEAST_KEYS // self.page_size), self.pages), self.pages, 2)


def _doubled(first: int, last: int, factor: int) -> list[int]:
    """`first` times powers of `factor` below `last`, and `last`."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(sizes[-1] * factor, last))
    return sizes


def _least(sizes: list[int], wanted: int) -> int:
    """The least of ascending sizes that is at least `wanted`."""
    return next(size for size in sizes if size >= wanted)
