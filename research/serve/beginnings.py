"""What the beginnings of texts have in common: pages that are there, and pages that are coming."""

from collections.abc import Mapping, Sequence

from research.serve.pages import Pages
from research.serve.text import Text


def shared(text: Text, pages: Pages) -> list[int]:
    """Pages that have a waiting text's first tokens."""
    if text.scored:
        return []
    return pages.match(text.digests(pages.page_size)[: _most(text, pages)])


def following(
    running: Sequence[Text],
    waiting: Sequence[Text],
    found: Mapping[int, Sequence[int]],
    pages: Pages,
) -> set[int]:
    """The numbers of the waiting texts whose next page will be there once a text before them is
    read: behind those that were `found`, by number, their tokens are its tokens."""
    size, coming, following = pages.page_size, set[bytes](), set[int]()
    for text in running:
        if text.cached < len(text.ids) - 1:
            coming.update(text.digests(size)[text.cached // size :])
    for text in waiting:
        first, digests = len(found[text.number]), text.digests(size)
        if first < _most(text, pages) and not text.scored and digests[first] in coming:
            following.add(text.number)
        coming.update(digests[first:])
    return following


def _most(text: Text, pages: Pages) -> int:
    # Its last token is run in any case: the next one is drawn from its logits.
    return (len(text.ids) - 1) // pages.page_size
