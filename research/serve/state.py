"""What `schedule` is told of the texts of an engine."""

from collections.abc import Collection, Mapping, Sequence

from research.serve.pages import Pages
from research.serve.schedule import Running, State, Waiting
from research.serve.text import Text


def state_of(
    running: Sequence[Text],
    waiting: Sequence[Text],
    guesses: Mapping[int, Sequence[int]],
    found: Mapping[int, Sequence[int]],
    follows: Collection[int],
    pages: Pages,
) -> State:
    """Texts that run and texts that wait; by their numbers, the tokens that are guessed for the
    former, and for the latter the pages that were found, and which follow a text before them."""
    return State(
        tuple(
            Running(
                text.number,
                len(text.ids),
                text.cached,
                len(text.pages),
                pages.alone(text.pages[text.gone :]),
                len(guesses[text.number]),
                text.soft.ends,
            )
            for text in running
        ),
        tuple(
            Waiting(
                text.number,
                len(text.ids),
                len(found[text.number]),
                pages.idle(found[text.number]),
                text.number in follows,
                text.soft.ends,
            )
            for text in waiting
        ),
        pages.free,
    )
