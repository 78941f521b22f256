"""What runs in a step: a pure function of what there is, `schedule`, which knows no clock.

Texts are served in the order in which they came. A text of whose tokens all but the last are in the
cache takes one token of the step; any other is read, one text in a step and at most so many tokens
of it, beside the texts that go on. A text keeps its turn: where pages run out, the texts that came
last give theirs back and wait again, in front of those that have not begun.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A text without pages: its number, its tokens, how many pages of other texts have its first
    ones, and how many of those pages nobody holds."""

    number: int
    length: int
    shared: int = 0
    idle: int = 0


@dataclass(frozen=True)
class Running:
    """A text with pages: its number, its tokens, how many of these are in the cache, its pages, how
    many of those no other text holds, and how many tokens behind its last one are guessed."""

    number: int
    length: int
    cached: int
    pages: int
    alone: int
    guessed: int = 0


@dataclass(frozen=True)
class State:
    """Texts that run and texts that wait, each in the order in which they came, and the number of
    free pages."""

    running: tuple[Running, ...]
    waiting: tuple[Waiting, ...]
    free: int


@dataclass(frozen=True)
class Budget:
    """What a step has room for: texts, tokens of the text that is read, tokens of a page."""

    rows: int
    chunk: int
    page_size: int


@dataclass(frozen=True)
class Plan:
    """What a step does.

    preempted  texts that give back their pages and wait again, the last of them in front
    admitted   texts that begin to run, with the pages of others that have their first tokens
    singles    texts with one token in this step
    chunk      the text that is read, None for none, and how many of its tokens
    pages      how many pages a text gets that has not enough of them
    drafts     how many of a text's guessed tokens run with its last one
    """

    preempted: tuple[int, ...]
    admitted: tuple[int, ...]
    singles: tuple[int, ...]
    chunk: tuple[int, int] | None
    pages: dict[int, int]
    drafts: dict[int, int]


def schedule(state: State, budget: Budget) -> Plan:
    """What the next step does. As long as there is a text, and every text alone has room in the
    pool, the oldest gets on."""
    planning = _Planning(budget, list(state.running), state.free)
    index = 0
    while index < len(planning.running):
        planning.run(index)
        index += 1
    # Texts begin only where none had to stop: their pages would be taken from them at once.
    waiting = state.waiting if not planning.preempted else ()
    for text in waiting:
        if not planning.admit(text):
            break
    planning.draft()
    return Plan(
        tuple(planning.preempted),
        tuple(planning.admitted),
        tuple(planning.singles),
        planning.chunk,
        planning.pages,
        planning.drafts,
    )


class _Planning:
    """A plan in the making: what is still free, and who runs."""

    def __init__(self, budget: Budget, running: list[Running], free: int):
        self.budget, self.running, self.free = budget, running, free
        self.preempted: list[int] = []
        self.admitted: list[int] = []
        self.singles: list[int] = []
        self.chunk: tuple[int, int] | None = None
        self.pages: dict[int, int] = {}
        self.drafts: dict[int, int] = {}

    def run(self, index: int) -> None:
        """Lets the running text with this index go on, if need be at the cost of those behind."""
        text = self.running[index]
        tokens = self._tokens(text)
        if not tokens:
            return
        needed = self._needed(text, tokens)
        while needed > self.free and len(self.running) > index + 1:
            self._preempt(self.running.pop())
        if needed <= self.free:
            self._take(text, tokens, needed)
        elif len(self.running) > 1:
            # It came last and has no room: it waits for the others.
            self._preempt(self.running.pop())

    def admit(self, waiting: Waiting) -> bool:
        """Whether a waiting text has begun."""
        shared = waiting.shared * self.budget.page_size
        text = Running(waiting.number, waiting.length, shared, waiting.shared, 0)
        tokens = self._tokens(text)
        if not tokens or len(self.running) >= self.budget.rows:
            return False
        # Room for all that there is to read, though only a part is read now: a text that begins
        # without it would soon be stopped.
        if waiting.idle + self._needed(text, text.length - text.cached) > self.free:
            return False
        self.free -= waiting.idle
        self.running.append(text)
        self.admitted.append(text.number)
        self._take(text, tokens, self._needed(text, tokens))
        return True

    def draft(self) -> None:
        """Lets guessed tokens run in the room that is left: no text waits or stops for them."""
        if self.chunk is not None or self.preempted:
            return
        size = self.budget.page_size
        for text in self.running:
            held = text.pages + self.pages.get(text.number, 0)
            count = min(text.guessed, (held + self.free) * size - text.cached - 1)
            if text.number in self.singles and count > 0:
                more = max(0, -(-(text.cached + 1 + count) // size) - held)
                self.free -= more
                if more:
                    self.pages[text.number] = self.pages.get(text.number, 0) + more
                self.drafts[text.number] = count

    def _tokens(self, text: Running) -> int:
        """How many tokens of a text this step has room for."""
        left = text.length - text.cached
        if left == 1:
            return 1
        return min(left, self.budget.chunk) if self.chunk is None else 0

    def _needed(self, text: Running, tokens: int) -> int:
        """Pages that a text lacks for so many more tokens."""
        return max(0, -(-(text.cached + tokens) // self.budget.page_size) - text.pages)

    def _take(self, text: Running, tokens: int, pages: int) -> None:
        self.free -= pages
        if pages:
            self.pages[text.number] = pages
        if text.length - text.cached == 1:
            self.singles.append(text.number)
        else:
            self.chunk = text.number, tokens

    def _preempt(self, text: Running) -> None:
        # Pages that two stopped texts share are not counted, which the next step makes good.
        self.free += text.alone
        self.preempted.append(text.number)
