"""What runs in a step: a pure function of what there is, `schedule`, which knows no clock.

Texts are served in the order in which they came. A text of whose tokens all but the last are in the
cache takes one token of the step; any other is read beside the texts that go on: one alone, or
several of which each has few tokens. A text that begins as one that is being read waits until that
is read, and then shares its pages. A text keeps its turn: where pages run out, the texts that came
last give theirs back and wait again, in front of those that have not begun.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Waiting:
    """A text without pages: its number, its tokens, how many pages of other texts have its first
    ones, how many of those pages nobody holds, whether another text, which runs or came before
    it, has yet to be read whose tokens go on as its own for a page at least, and the ends [first,
    end) of its blocks, which are read whole."""

    number: int
    length: int
    shared: int = 0
    idle: int = 0
    follows: bool = False
    blocks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Running:
    """A text with pages: its number, its tokens, how many of these are in the cache, its pages, how
    many of those no other text holds, how many tokens behind its last one are guessed, and its
    blocks."""

    number: int
    length: int
    cached: int
    pages: int
    alone: int
    guessed: int = 0
    blocks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class State:
    """Texts that run and texts that wait, each in the order in which they came, and the number of
    free pages."""

    running: tuple[Running, ...]
    waiting: tuple[Waiting, ...]
    free: int


@dataclass(frozen=True)
class Budget:
    """What a step has room for: texts, tokens of a page, and how many texts may be read with how
    many tokens of each; one of these must be for one text, and have room for every block."""

    rows: int
    page_size: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Plan:
    """What a step does.

    preempted  texts that give back their pages and wait again, the last of them in front
    admitted   texts that begin to run, with the pages of others that have their first tokens
    singles    texts with one token in this step
    chunks     the texts that are read, and how many tokens of each
    pages      how many pages a text gets that has not enough of them
    drafts     how many of a text's guessed tokens run with its last one
    """

    preempted: tuple[int, ...]
    admitted: tuple[int, ...]
    singles: tuple[int, ...]
    chunks: tuple[tuple[int, int], ...]
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
        tuple(planning.chunks),
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
        self.chunks: list[tuple[int, int]] = []
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
        text = replace(text, blocks=waiting.blocks)
        tokens = self._tokens(text)
        if not tokens or waiting.follows or len(self.running) >= self.budget.rows:
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
        if self.chunks or self.preempted:
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
        widest = max((tokens for _, tokens in self.chunks), default=0)
        more = [each for reads, each in self.budget.parts if reads > len(self.chunks)]
        most = min(left, max((each for each in more if each >= widest), default=0))
        for first, end in text.blocks:
            if first < text.cached + most < end:
                return max(0, first - text.cached)
        return most

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
            self.chunks.append((text.number, tokens))

    def _preempt(self, text: Running) -> None:
        # Pages that two stopped texts share are not counted, which the next step makes good.
        self.free += text.alone
        self.preempted.append(text.number)
