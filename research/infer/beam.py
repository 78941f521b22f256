"""Beam search: the likeliest texts rather than the likeliest next tokens.

Each prompt has as many rows as beams in one `DecodeState`; after each token a row goes on from the
cache of the row that its text comes from. Which texts go on is decided on the host, from the few
best tokens of each row.

Letters: B rows, which are prompts times beams; D model, V vocabulary, k candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.data.tokenizers import Tokenizer
from research.infer.decode import ROWS, Generation
from research.infer.padding import everywhere, row_count
from research.infer.prompts import Prompt, check_ids, prompt_ids, source_and_start
from research.infer.sampling import SamplingConfig
from research.infer.steps import DecodeState, Start, read_prompts
from research.models.config import Execution
from research.models.model import Model
from research.parallel.placement import gather_axis
from research.tree import Tree


@dataclass(frozen=True)
class BeamConfig:
    """beams           texts of each prompt that are kept
    length_penalty  alpha of Wu et al. (arXiv:1609.08144, equation 14): log-probabilities are
                    divided by ((5 + tokens) / 6) ** alpha, so that long texts are not left for
                    short ones; 0 divides by 1
    """

    beams: int = 4
    length_penalty: float = 0.6

    def __post_init__(self):
        if self.beams < 1:
            raise ValueError(f"beams={self.beams} must be at least 1")
        if not 0 <= self.length_penalty < float("inf"):
            raise ValueError(f"length_penalty={self.length_penalty} must be at least 0")

    def score(self, logprob: float, tokens: int) -> float:
        """The score of a text of so many tokens, its end included."""
        return logprob / ((5 + tokens) / 6) ** self.length_penalty


@dataclass
class _Search:
    """The texts of one prompt. `running` and `finished` are (score, log-probability, token ids),
    the best first; of running texts both numbers are the log-probability."""

    prompt: Prompt
    ids: list[int]
    source: list[int] | None
    config: BeamConfig
    limit: int
    running: list[tuple[float, float, list[int]]] = field(default_factory=lambda: [(0.0, 0.0, [])])
    finished: list[tuple[float, float, list[int]]] = field(default_factory=list)
    done: bool = False

    def add(self, logprobs_Bk: np.ndarray, ids_Bk: np.ndarray, ends: Sequence[int]) -> list[int]:
        """Takes the best next tokens of each running text, and returns which text each of the new
        ones comes from."""
        beams = self.config.beams
        candidates = [
            (text[1] + float(logprob), row, int(token))
            for row, text in enumerate(self.running)
            for logprob, token in zip(logprobs_Bk[row], ids_Bk[row])
        ]
        candidates.sort(key=lambda one: -one[0])
        came_from, running = [], []
        for rank, (logprob, row, token) in enumerate(candidates):
            ids = [*self.running[row][2], token]
            if token in ends:
                # An end that is not among the best beams would not be gone on with either.
                if rank < beams:
                    self.finished.append((self.config.score(logprob, len(ids)), logprob, ids))
            elif len(running) < beams:
                running.append((logprob, logprob, ids))
                came_from.append(row)
        self.running = running
        self._close()
        return came_from

    def _close(self) -> None:
        """Keeps the best finished texts, and ends the search where no running one can be better."""
        length = len(self.running[0][2]) if self.running else self.limit
        if length >= self.limit:
            self.finished += [
                (self.config.score(logprob, len(ids)), logprob, ids)
                for _, logprob, ids in self.running
            ]
        self.finished = sorted(self.finished, key=lambda one: -one[0])[: self.config.beams]
        if length >= self.limit:
            self.done = True
        elif len(self.finished) == self.config.beams:
            best = self.config.score(self.running[0][1], length)
            self.done = best <= self.finished[-1][0]


def beam_search(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    config: SamplingConfig = SamplingConfig(),
    beams: BeamConfig = BeamConfig(),
) -> list[Generation]:
    """The text of the best score for each prompt, as `research.infer.decode.generate` returns it;
    of `config` its tokens, ends and stop strings are used. `logprobs` has one number, that of the
    whole text. ValueError for an encoder, a prompt outside the vocabulary, one that is too long,
    and a mesh of several devices."""
    c, model = model.config, replace(model, execution=Execution())
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        raise ValueError(f"beam search runs on one device, and the mesh has {mesh.size}")
    if c.kind == "encoder":
        raise ValueError("the model is an encoder, which continues no text; choose a decoder")
    if "prompt" in params:
        params = jax.jit(Model.prompted, static_argnums=0)(model, params)
    searches = []
    for index, prompt in enumerate(prompts):
        ids, source = prompt_ids(tokenizer, prompt, config.bos), None
        if c.kind == "encoder_decoder":
            source, ids = source_and_start(c, tokenizer, prompt, ids, config.decoder_ids)
        check_ids(c, index, prompt, ids if source is None else source)
        limit, longest = config.max_tokens, max(len(ids), len(source or ()))
        if c.position == "learned":
            limit = min(limit, c.max_length - len(ids))
            if limit < 1 or longest > c.max_length:
                raise ValueError(
                    f"prompt {index} has {longest} tokens, the model {c.max_length} positions; "
                    "shorten it"
                )
        searches.append(_Search(prompt, ids, source, beams, limit))
    ends = [n for n in (tokenizer.eos_id, *config.stop_ids) if n is not None]
    at_once = max(1, ROWS // beams.beams)
    for first in range(0, len(searches), at_once):
        _search(model, params, searches[first : first + at_once], ends)
    return [_generation(one, tokenizer, config) for one in searches]


def _search(model: Model, params: Tree, searches: list[_Search], ends: Sequence[int]) -> None:
    """Searches for the texts of some prompts together."""
    beams = searches[0].config.beams
    each = [one for one in searches for _ in range(beams)]
    rows = row_count(len(each), model)
    sources = None if each[0].source is None else [one.source for one in each]
    limits = [one.limit for one in each]
    start = Start([one.ids for one in each], sources, limits, [(0, 0)] * len(each), 0)
    state, hidden_B1D = read_prompts(model, params, start, rows)
    # So many that all but the ends are enough to go on with.
    count = min((1 + len(ends)) * beams, model.config.vocab_size)
    found = _candidates(params, hidden_B1D, model=model, count=count)
    while True:
        logprobs_Bk, ids_Bk = jax.device_get(found)
        rows_B, tokens_B = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)
        for n, one in enumerate(searches):
            if one.done:
                continue
            own = slice(n * beams, (n + 1) * beams)
            came_from = one.add(logprobs_Bk[own], ids_Bk[own], ends)
            for place, (row, text) in enumerate(zip(came_from, one.running)):
                rows_B[n * beams + place], tokens_B[n * beams + place] = (
                    n * beams + row,
                    text[2][-1],
                )
        if all(one.done for one in searches):
            return
        state, found = _extend(params, state, rows_B, tokens_B, model=model, count=count)


@partial(jax.jit, static_argnames=("model", "count"), donate_argnames="state")
def _extend(
    params: Tree, state: DecodeState, rows_B, tokens_B, *, model: Model, count: int
) -> tuple[DecodeState, tuple[jax.Array, jax.Array]]:
    """Rows go on from the caches of `rows_B`, each with its new token."""
    cache, position_B = state.cache.taken(rows_B), state.position_B[rows_B] + 1
    batch = {
        "inputs": tokens_B[:, None],
        "positions": position_B[:, None],
        "segments": jnp.ones_like(tokens_B)[:, None],
    }
    # Of an encoder-decoder the rows of a prompt read one source, so the memory stays as it is.
    hidden_B1D, cache = model.decode(params, batch, cache, state.memory)
    state = replace(state, cache=cache, position_B=position_B)
    return state, _candidates(params, hidden_B1D, model=model, count=count)


@partial(jax.jit, static_argnames=("model", "count"))
def _candidates(
    params: Tree, hidden_B1D, *, model: Model, count: int
) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities float32 [B, k], ids int32 [B, k]) of each row's likeliest tokens."""
    logits_BV = gather_axis(model.logits(params, hidden_B1D)[:, 0], axis=1)
    logprobs_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32), axis=-1)
    logprobs_Bk, ids_Bk = lax.top_k(logprobs_BV, count)
    return everywhere(logprobs_Bk), everywhere(ids_Bk)


def _generation(one: _Search, tokenizer: Tokenizer, config: SamplingConfig) -> Generation:
    _, logprob, ids = one.finished[0]
    ends = {tokenizer.eos_id: "eos", **dict.fromkeys(config.stop_ids, "stop")}
    finish = ends.get(ids[-1], "length") if ids else "length"
    # As `Continuation` has it: a decoder's text goes on from its prompt.
    before = [] if one.source is not None else one.ids[-8:]
    said = ids[:-1] if finish != "length" else ids
    text = tokenizer.decode([*before, *said])[len(tokenizer.decode(before)) :]
    places = [at for stop in config.stop if (at := text.find(stop)) >= 0]
    if places:
        text, finish = text[: min(places)], "stop"
    return Generation(one.prompt, text, tuple(ids), (logprob,), finish)
