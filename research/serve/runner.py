"""The part of an engine that is on the device: the weights, and the pools of pages."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from research.infer.decode_layout import prepare
from research.models.adapters import virtual_tokens
from research.models.model import Model
from research.models.paged import PagedCache
from research.serve.adapters import NONE, with_bank
from research.serve.draw import Told
from research.serve.shapes import Shape
from research.serve.soft import Medium, encode
from research.serve.speculate import guess, read
from research.serve.step import Row, make_pools, step
from research.tree import Tree


class Draft(NamedTuple):
    """A small model that guesses what a large one will write, and its parameters."""

    model: Model
    params: Tree


class Ran(NamedTuple):
    """What a step gave, on the host: the tokens that went through the model, what was drawn, and
    what follows each token that was read where its shape is scored."""

    inputs_T: np.ndarray
    told: Told
    scores: Told | None


class Runner:
    """A model, a draft if there is one, and their pools of `pages` pages of `page_size` tokens.

    `slots` texts run at a time. `prepared` says whether the weights are copied into the layout of
    decoding, `bits` in how many bits keys and values are kept, None for the type of computation;
    `adapters` are low-rank adapters by name, of which each text may have one. ValueError for a
    draft or an adapter that does not fit the model.
    """

    def __init__(
        self,
        model: Model,
        params: Tree,
        pages: int,
        page_size: int,
        *,
        slots: int,
        prepared: bool = True,
        draft: Draft | None = None,
        bits: int | None = None,
        adapters: Mapping[str, Tree] | None = None,
    ):
        # A mesh belongs to a thread, and the one that runs may be another.
        self._mesh = None if jax.sharding.get_abstract_mesh().empty else jax.sharding.get_mesh()
        lay_out: Callable = prepare if prepared else lambda _, params: params
        adapters, laid_out = adapters or {}, lay_out(model, _prompted(model, params))
        self.model, self.params = model, with_bank(laid_out, list(adapters.values()))
        self._numbers = {"": NONE, **{name: number for number, name in enumerate(adapters)}}
        self.virtual = virtual_tokens(self.params)
        self._pools = _committed(make_pools(model, pages, page_size, slots, bits))
        self.draft = None
        if draft is not None:
            own = _prompted(*draft)
            _check_draft(model, self.virtual, draft.model, virtual_tokens(own))
            self.draft = Draft(draft.model, lay_out(draft.model, own))
            made = make_pools(draft.model, pages, page_size, slots, bits)
            self._draft_pools = _committed(made)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, those of the draft included."""
        pools = [self._pools] + ([] if self.draft is None else [self._draft_pools])
        return sum(array.nbytes for array in jax.tree.leaves(pools))

    def adapter(self, name: str) -> int:
        """The number of an adapter in the bank. ValueError for a name that there is not."""
        if name not in self._numbers:
            known = ", ".join(filter(None, self._numbers)) or "none"
            raise ValueError(f"no adapter {name!r} here; there are {known}")
        return self._numbers[name]

    def run(self, row: Row, shape: Shape, allow: Callable[[np.ndarray], None] | None = None) -> Ran:
        """Runs a row of this shape through the model, and through the draft, which keeps up with
        the model and guesses where the shape has room for it. `allow` is told of the row's tokens
        with the guesses, before the model reads them, and may change how the row is drawn."""
        with self._placed():
            return self._run(row, shape, allow)

    def encode(self, medium: Medium, adapter: int) -> np.ndarray:
        """The vectors [S, D] of a medium, with the adapter of that number; float32 on the host."""
        with self._placed():
            return encode(self.model, self.params, medium, adapter)

    def _placed(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _run(self, row: Row, shape: Shape, allow: Callable[[np.ndarray], None] | None) -> Ran:
        guessed = None
        if self.draft is not None:
            how = {"model": self.draft.model, "shape": shape}
            if shape.drafts:
                draws = row.draws
                self._draft_pools, row, guessed = guess(
                    self.draft.params, self._draft_pools, row, **how
                )
                if allow is not None:
                    allow(np.asarray(row.inputs_T))
                    row = replace(row, draws=draws)
            else:
                self._draft_pools = read(self.draft.params, self._draft_pools, row, **how)
        self._pools, told, scores = step(
            self.params, self._pools, row, guessed, model=self.model, shape=shape
        )
        return Ran(*jax.device_get((row.inputs_T, told, scores)))


def _committed(pools: PagedCache) -> PagedCache:
    """The pools where they are, for good: as a step gives them back. Its first call would otherwise
    be of another kind than the rest, and its program be compiled twice."""
    return jax.tree.map(lambda array: jax.device_put(array, array.sharding), pools)


def _prompted(model: Model, params: Tree) -> Tree:
    return (
        jax.jit(Model.prompted, static_argnums=0)(model, params) if "prompt" in params else params
    )


def _check_draft(model: Model, virtual: int, draft: Model, own: int) -> None:
    for name, got, wanted in (
        ("model.kind", draft.config.kind, model.config.kind),
        ("model.vocab_size", draft.config.vocab_size, model.config.vocab_size),
        ("virtual tokens", own, virtual),
    ):
        if got != wanted:
            raise ValueError(
                f"the draft has {name}={got}, and the model {wanted}; choose a draft of the same "
                "family"
            )
    if draft.config.position == "learned" and draft.config.max_length < model.config.max_length:
        raise ValueError(
            f"the draft has {draft.config.max_length:,} positions, and the model "
            f"{model.config.max_length:,}; choose a draft for texts as long"
        )
