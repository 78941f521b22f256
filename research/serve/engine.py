"""`Engine`: continues many prompts together, with one call of the model for all of them.

    engine = Engine(model, params, tokenizer, pages=512, page_size=16)
    engine.generate([Request("Once upon", SamplingConfig(max_tokens=8))])[0].text

A server does not wait for the end: `submit` returns a text at once, every `step` writes a token or
more of each text that runs, and `cancel` gives a text's pages back, at any time between two steps.
An engine belongs to one thread.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice

from research.data.tokenizers import Tokenizer
from research.devices.backend import platform
from research.models.adapters import virtual_tokens
from research.models.kinds import longest_window
from research.models.model import Model
from research.serve.assemble import Turn, allow, assemble
from research.serve.beginnings import following, shared
from research.serve.counts import Counts
from research.serve.draw import alternatives
from research.serve.limits import check_guesses, check_model, prompt_tokens, text_length
from research.serve.lookup import lookup
from research.serve.pages import Pages
from research.serve.request import Completion, Request
from research.serve.runner import Draft, Runner
from research.serve.schedule import Budget, schedule
from research.serve.shapes import Shape, Shapes
from research.serve.soft import Soft, read_at_once
from research.serve.state import state_of
from research.serve.text import Text
from research.tree import Tree


class Engine:
    """Writes the texts of requests with one model, in `pages` pages of `page_size` tokens each.

    rows       most texts that run at a time; others wait
    chunk      most tokens of prompts that are read in one step, of one or in equal parts of
               several, beside the texts that go on; more where a whole image has more
    length     longest text in tokens, prompt included; by default as many as the model was made for
               and the pool has room for
    share      whether texts with equal beginnings share the pages of these
    prepared   whether the weights are copied into the layout of decoding
               (`research.infer.decode_layout`), which is faster on a CPU and changes the order of
               sums
    drafts     tokens that are guessed ahead of each text, from what it has said before
               (`research.serve.lookup`), and read in one step with its last one. Each is drawn as
               without a guess, with the same random number, and those behind the first that was
               not guessed are thrown away: a text is the same with and without
    draft      a small model of the same vocabulary that guesses them instead
               (`research.serve.speculate`). Texts at temperature 0 are the same with and without;
               others have the same distribution
    few        whether two or three programs do for all steps (`research.serve.shapes`): for texts
               that are written once, where to compile more takes longer than they save
    adapters   low-rank adapters by name: a request's text is written with the one it names
    bits       8 or 4: keys and values are rounded to so many bits once a page is full
               (`research.models.rounded`); None keeps them in the type of computation

    On the mesh that is set where it is made it keeps each head's keys where its queries are.
    ValueError for a model that is no decoder, and on a mesh that splits texts.
    """

    def __init__(
        self,
        model: Model,
        params: Tree,
        tokenizer: Tokenizer,
        *,
        pages: int,
        page_size: int = 16,
        rows: int = 8,
        chunk: int = 128,
        length: int | None = None,
        share: bool = True,
        prepared: bool = True,
        drafts: int = 0,
        draft: Draft | None = None,
        bits: int | None = None,
        few: bool = False,
        adapters: Mapping[str, Tree] | None = None,
    ):
        check_model(model, rows, chunk)
        check_guesses(drafts, draft is not None, bits, page_size)
        self.pages = Pages(pages, page_size)
        self.length = text_length(model.config, virtual_tokens(params), self.pages, length)
        more = {"draft": draft, "bits": bits, "adapters": adapters}
        self.runner = Runner(model, params, pages, page_size, slots=rows, prepared=prepared, **more)
        self.model, self.tokenizer, self.share = model, tokenizer, share
        # Products of one row in bfloat16 take 25 times as long on a CPU.
        slow = model.precision.compute != "float32" and platform() == "cpu"
        most = -(-self.length // page_size)
        chunk = read_at_once(model.config, chunk)
        self.shapes = Shapes(rows, chunk, most, page_size, 2 if slow else 1, drafts, few)
        self.counts = Counts()
        self._texts: dict[int, Text] = {}
        self._running: list[int] = []
        self._waiting: deque[int] = deque()
        self._next = 0
        self._slots, self._window = list(range(rows)), longest_window(model.config)

    @property
    def running(self) -> int:
        """Texts that run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts that wait for their turn."""
        return len(self._waiting)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The continuation of each request, in order. ValueError, before anything is written, for a
        prompt that this engine cannot continue."""
        texts = [self.submit(request) for request in self._checked(requests)]
        while not all(text.finish for text in texts):
            self.step()
        return [text.completion() for text in texts]

    def submit(self, request: Request) -> Text:
        """The text of a request, which the next steps write. ValueError for a prompt outside the
        vocabulary, and one that leaves no room for a token."""
        prompt = self.prompt_ids(request)
        limit = min(request.sampling.max_tokens, self.length - len(prompt))
        adapter = self.runner.adapter(request.adapter)
        soft = Soft(self.model.config, prompt, request.media)
        text = Text(self._next, request, prompt, limit, self.tokenizer, soft, adapter)
        self._texts[text.number] = text
        self._waiting.append(text.number)
        self._next += 1
        return text

    def cancel(self, text: Text) -> None:
        """Ends a text; one that has ended already stays as it is."""
        if not text.finish:
            text.finish = "cancelled"
            text.written.close()
            self._end(text)

    def step(self) -> list[Text]:
        """Runs the model once for the texts whose turn it is: those that have got tokens. Does
        nothing where there is none."""
        turn = self._plan()
        if not turn.texts:
            return []
        shape = turn.shape(self.shapes)
        row = assemble(turn, shape, self.pages.page_size, self.runner)
        guided = any(text.guide for text in turn.singles if text.number in turn.drafts)
        heeded = partial(allow, turn, shape, row) if guided else None
        inputs_T, told, scores = self.runner.run(row, shape, heeded)
        self.counts.steps += 1
        for index, text in enumerate(turn.singles):
            first, count = index * shape.each, len(turn.drafts.get(text.number, []))
            self.counts.guessed += count
            for at in range(first, first + count + 1):
                if not self._advance(text, 1, told, at) or text.finish or at == first + count:
                    break
                if text.ids[-1] != inputs_T[at + 1] or text.guide and text.guide.forced(text.left):
                    break
                self.counts.kept += 1
        written = list(turn.singles)
        for index, (text, tokens) in enumerate(turn.chunks):
            if scores is not None and text.scored:
                here = slice(index * shape.chunk, index * shape.chunk + tokens)
                told_of = alternatives(scores, here, text.request.alternatives)
                text.score(text.cached + 1, scores.logprob_M[here].tolist(), told_of)
            written += [text] if self._advance(text, tokens, told, shape.unread + index) else []
        return written

    def compile(self, shape: Shape) -> None:
        """Compiles a shape's program, by a step in which nothing runs."""
        self.runner.run(assemble(Turn(), shape, self.pages.page_size, self.runner), shape)

    def prompt_ids(self, request: Request) -> list[int]:
        """The tokens of a request's prompt, see `submit`."""
        c, sizes = self.model.config, (self.length, self.shapes.chunk)
        return prompt_tokens(c, self.tokenizer, request, *sizes)

    def _checked(self, requests: Sequence[Request]) -> Sequence[Request]:
        for request in requests:
            self.prompt_ids(request)
        return requests

    def _plan(self) -> Turn:
        """Whose turn it is in this step. The pages of all have changed hands."""
        running = [self._texts[number] for number in self._running]
        guesses = {text.number: self._guess(text) for text in running}
        # No more can begin at once, and to look for their pages takes time.
        waiting = [self._texts[number] for number in islice(self._waiting, self.shapes.rows)]
        found = {text.number: shared(text, self.pages) if self.share else [] for text in waiting}
        follows = following(running, waiting, found, self.pages) if self.share else set[int]()
        state = state_of(running, waiting, guesses, found, follows, self.pages)
        size, parts = self.pages.page_size, tuple(self.shapes.parts())
        plan = schedule(state, Budget(self.shapes.rows, size, parts))
        for number in plan.preempted:
            self._stop(self._texts[number])
        for number in plan.admitted:
            self._begin(self._texts[number], found[number])
        # Last, so that no page that a text was promised is taken for another.
        for number, count in plan.pages.items():
            self._texts[number].pages += self.pages.take(count)
        chunks = [(self._texts[number], tokens) for number, tokens in plan.chunks]
        drafts = {number: guesses[number][:count] for number, count in plan.drafts.items()}
        return Turn([self._texts[number] for number in plan.singles], chunks, drafts)

    def _guess(self, text: Text) -> list[int]:
        """The tokens that are guessed to follow a text that runs."""
        if text.cached < len(text.ids) - 1:
            return []
        # With each step comes a token that is not guessed.
        most = max(0, min(self.shapes.drafts, text.left - 1))
        return lookup(text.ids, most) if self.runner.draft is None else [0] * most

    def _begin(self, text: Text, shared: list[int]) -> None:
        self._waiting.remove(text.number)
        self._running.append(text.number)
        self.pages.share(shared)
        text.pages, text.slot = list(shared), self._slots.pop()
        text.cached = len(shared) * self.pages.page_size
        if not text.logprobs:  # and not where it was stopped while it was written
            text.found = min(text.cached, len(text.prompt))
            self.counts.found += text.found

    def _stop(self, text: Text) -> None:
        self._running.remove(text.number)
        self._slots.append(text.slot)
        self._waiting.appendleft(text.number)
        self._release(text)
        self.counts.preempted += 1

    def _release(self, text: Text) -> None:
        self.pages.release(text.pages[text.gone :])
        text.pages, text.cached, text.gone = [], 0, 0
        text.soft.forget()

    def _leave(self, text: Text) -> None:
        """Gives back the pages that have left the window of every later token."""
        if not self._window:
            return
        # The last token may run again, where its next one is not taken, and sees its block.
        seen = min(text.cached - self._window, text.soft.spans(text.cached - 1, text.cached)[0, 0])
        gone = max(0, seen) // self.pages.page_size
        if gone > text.gone:
            self.pages.release(text.pages[text.gone : gone])
            text.gone = gone

    def _end(self, text: Text) -> None:
        if text.number in self._running:
            self._running.remove(text.number)
            self._slots.append(text.slot)
        else:
            self._waiting.remove(text.number)
        del self._texts[text.number]
        self._release(text)
        self.counts.ended += 1

    def _advance(self, text: Text, tokens: int, told, index: int) -> bool:
        """Notes that so many more tokens of a text are in its pages; whether it got a token."""
        before = text.cached // self.pages.page_size
        text.cached += tokens
        self.counts.computed += tokens
        full = range(before, text.cached // self.pages.page_size)
        if self.share and full:
            digests = text.digests(self.pages.page_size)
            for number in full:
                self.pages.register(text.pages[number], digests[number])
        self._leave(text)
        text.soft.forget(text.cached)
        if text.cached < len(text.ids):
            return False
        [likeliest] = alternatives(told, slice(index, index + 1), text.request.alternatives)
        if text.add(int(told.token_M[index]), float(told.logprob_M[index]), likeliest):
            self.counts.written += 1
        elif not text.finish:
            text.cached -= 1  # its last token runs again, and another one is drawn
            return False
        if text.finish:
            self._end(text)
        return True
