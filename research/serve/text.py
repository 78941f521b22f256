"""A text that an engine writes: a request on the host, from its prompt to its end."""

import zlib
from collections.abc import Sequence

import numpy as np

from research.data.tokenizers import Tokenizer
from research.infer.text import Continuation
from research.serve.adapters import NONE
from research.serve.pages import digests
from research.serve.request import Alternatives, Completion, Request
from research.serve.soft import Soft


class Text:
    """A prompt and its continuation so far.

    `ids` are all tokens, of which the first `cached` have their keys and values in `pages`, but for
    the first `gone` pages, which it has given back since nothing sees them any more. `slot` is its
    number among the texts that run. `soft` are the media in its prompt.
    `finish` says why the text has ended, "" before. `written` is the continuation's text, of which
    the first `written.certain` characters are final.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        prompt: list[int],
        limit: int,
        tokenizer: Tokenizer,
        soft: Soft,
        adapter: int = NONE,
    ):
        self.number, self.request, self.prompt, self.limit = number, request, prompt, limit
        self.soft, self.adapter = soft, adapter  # the latter is its number in the model's bank
        self.ids = list(prompt)
        self.cached, self.pages, self.found = 0, list[int](), 0
        self.gone, self.slot = 0, 0
        self.logprobs: list[float] = []
        self.alternatives: list[Alternatives] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_alternatives: list[Alternatives] = []
        self.written = Continuation(tokenizer.decode, prompt, request.sampling.stop)
        self.finish = ""
        self.guide = request.grammar.guide() if request.grammar is not None else None
        self._eos_id = tokenizer.eos_id
        # The same random numbers as in `research.infer.decode`: chosen by the prompt's content.
        content = np.array(prompt, "<i4").tobytes()
        self.stream = zlib.crc32(content), request.copy
        self._digests: list[bytes] = []

    @property
    def token_ids(self) -> list[int]:
        """The tokens after the prompt."""
        return self.ids[len(self.prompt) :]

    @property
    def left(self) -> int:
        """How many tokens it may still get."""
        return self.limit - len(self.logprobs)

    @property
    def scored(self) -> bool:
        """Whether log-probabilities of the prompt are still to be computed."""
        wanted = len(self.prompt) - 1 if self.request.prompt_logprobs else 0
        return len(self.prompt_logprobs) < wanted

    def digests(self, page_size: int) -> list[bytes]:
        """The digest of each full page of the tokens so far."""
        salt = f"{self.request.adapter}\0{self.request.salt}"  # a name has no such letter
        self._digests = digests(self.ids, page_size, salt, self._digests, self.soft.digest)
        return self._digests

    def score(self, first: int, logprobs: Sequence[float], alternatives: Sequence) -> None:
        """Takes the log-probabilities of the prompt's tokens from number `first` on."""
        # What was read before the text was stopped and read again is known.
        known = len(self.prompt_logprobs) + 1 - first
        last = len(self.prompt) - first
        self.prompt_logprobs += logprobs[known:last]
        if self.request.alternatives:
            self.prompt_alternatives += alternatives[known:last]

    def add(self, token_id: int, logprob: float, alternatives: Alternatives) -> bool:
        """Takes the next token, and sets `finish` if it is the last. False for one that is not
        taken: behind it the text could not follow its grammar to an end in time."""
        if self.guide is not None and not self.guide.take(token_id, self.left - 1):
            if self.guide.finished:
                self._end("stop" if self.guide.complete else "length")
            return False
        self.ids.append(token_id)
        self.logprobs.append(logprob)
        if self.request.alternatives:
            self.alternatives.append(alternatives)
        if finish := self._finish(token_id):
            self._end(finish)
        return True

    def _finish(self, token_id: int) -> str:
        """Why the text ends with this token, "" where it does not; adds the token's text."""
        if token_id == self._eos_id:
            return "eos"
        if token_id in self.request.sampling.stop_ids:
            return "stop"
        guide = self.guide
        if guide is not None and token_id in guide.ends:
            return "stop"
        self.written.add(token_id)
        if self.written.stopped or guide is not None and guide.finished:
            return "stop"
        if self.left:
            return ""
        return "stop" if guide is not None and guide.complete else "length"

    def _end(self, finish: str) -> None:
        self.finish = finish
        self.written.close()

    def completion(self) -> Completion:
        """The text as it is returned to the user."""
        return Completion(
            self.request.prompt,
            self.written.text,
            tuple(self.token_ids),
            tuple(self.logprobs),
            self.finish,
            tuple(self.alternatives),
            tuple(self.prompt),
            tuple(self.prompt_logprobs),
            tuple(self.prompt_alternatives),
            self.found,
        )
