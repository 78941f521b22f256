"""Which pages of the pool are whose, and which of them later texts may share."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np


class Pages:
    """A pool of numbered pages with a count of references to each.

    A full page may be registered under the digest of all tokens up to its end (`digests`), and is
    then found by texts that begin with these. When its last reference goes it stays known, and is
    taken for other tokens only when no unknown page is left, the one that was idle longest first.

    Invariants: each page is either blank, idle (registered, without references) or held; a digest
    has one page and a page one digest; the references are those that `take` and `share` gave and
    `release` has not taken back.
    """

    def __init__(self, count: int, page_size: int):
        if count < 1 or page_size < 1:
            raise ValueError(
                f"pages={count} of page_size={page_size} must both be at least 1; give the engine "
                "a larger pool"
            )
        self.count, self.page_size = count, page_size
        self._blank = list(reversed(range(count)))
        self._idle: OrderedDict[int, None] = OrderedDict()  # the longest idle first
        self._references = [0] * count
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Pages that `take` can give."""
        return len(self._blank) + len(self._idle)

    @property
    def held(self) -> int:
        """Pages with references."""
        return self.count - self.free

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """The registered pages of the first of these digests, up to the first that has none."""
        pages = []
        for digest in digests:
            if digest not in self._page_of:
                break
            pages.append(self._page_of[digest])
        return pages

    def idle(self, pages: Iterable[int]) -> int:
        """How many of these pages nobody holds: sharing them leaves so many fewer free."""
        return sum(self._references[page] == 0 for page in pages)

    def alone(self, pages: Iterable[int]) -> int:
        """How many of a text's pages no other text holds."""
        return sum(self._references[page] == 1 for page in pages)

    def take(self, count: int) -> list[int]:
        """So many pages with one reference each, unregistered."""
        if count > self.free:
            raise ValueError(f"{count} pages of {self.free} free ones; release some first")
        pages = []
        for _ in range(count):
            if self._blank:
                page = self._blank.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                del self._page_of[self._digest_of.pop(page)]
            self._references[page] = 1
            pages.append(page)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """A further reference to each of these pages, which `match` has found."""
        for page in pages:
            self._idle.pop(page, None)
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Takes back a reference to each of a text's pages, which are given from its start."""
        # From the end: of a text that nobody holds its end is then the first to be overwritten,
        # since a page without those before it is never found.
        for page in reversed(pages):
            if self._references[page] < 1:
                raise ValueError(f"page {page} is released twice; each reference goes once")
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._digest_of:
                    self._idle[page] = None
                else:
                    self._blank.append(page)

    def register(self, page: int, digest: bytes) -> None:
        """Makes a full page known by its digest. Where another page has it already, or the page
        one, nothing changes."""
        if digest not in self._page_of and page not in self._digest_of:
            self._page_of[digest], self._digest_of[page] = page, digest

    def forget(self) -> None:
        """Makes every page unknown, as when the weights have changed."""
        self._blank += self._idle
        self._idle.clear()
        self._page_of.clear()
        self._digest_of.clear()


def digests(
    ids: Sequence[int],
    page_size: int,
    salt: str = "",
    before: Sequence[bytes] = (),
    beside: Callable[[int, int], bytes] = lambda first, end: b"",
) -> list[bytes]:
    """The digest of each full page of a text's tokens: of its tokens and all before them, and of a
    `salt`, so that texts under different adapters share nothing. `before` are the first digests of
    the same text, which are not computed again. `beside` is what a page's tokens from the first up
    to the end say beside their ids, such as the image in whose places they are."""
    found = list(before)
    for first in range(len(found) * page_size, len(ids) - page_size + 1, page_size):
        content = np.array(ids[first : first + page_size], "<i4").tobytes()
        content += beside(first, first + page_size)
        parent = found[-1] if found else salt.encode()
        # A digest and not Python's hash, of which two texts could have the same.
        found.append(hashlib.blake2b(parent + b"|" + content, digest_size=16).digest())
    return found
