"""Which weights are pruned: a share of them, or N kept of M neighbours, by the least score."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

# Among which weights a share is taken: those of one output, or of the whole matrix.
Among = Literal["output", "matrix"]


@dataclass(frozen=True)
class Pruning:
    """What is asked of one matrix.

    share    of its weights that become 0
    pattern  (N, M): of M neighbouring inputs of an output N are kept, in place of a share
    format   the kept weights' format, of research/weights/formats.py; "" leaves them numbers
    """

    share: float = 0.0
    pattern: tuple[int, int] | None = None
    format: str = ""

    def __post_init__(self):
        if not 0 <= self.share < 1:
            raise ValueError(
                f"a sparsity of {self.share} leaves nothing; take a share in [0, 1), such as 0.5"
            )
        if self.pattern and not 0 < self.pattern[0] < self.pattern[1]:
            raise ValueError(
                f"{self.pattern[0]}:{self.pattern[1]} keeps that many of a group; take N:M with "
                "0 < N < M, such as 2:4"
            )

    @property
    def removed(self) -> float:
        """The share of weights that become 0."""
        return self.share if self.pattern is None else 1 - self.pattern[0] / self.pattern[1]

    def check(self, path: str, inputs: int) -> None:
        """ValueError, with the path, where the pattern's groups do not divide the inputs, or no
        weight of an output would be left."""
        if self.pattern and inputs % self.pattern[1]:
            kept, of = self.pattern
            raise ValueError(
                f"{path} has {inputs} inputs, which groups of {of} do not divide; leave it out of "
                f"the rules, or take a share such as {self.removed:g} in place of {kept}:{of}"
            )
        if not self.pattern and round(self.share * inputs) >= inputs:
            raise ValueError(
                f"{path}: a sparsity of {self.share} leaves nothing of its {inputs} inputs; take a "
                f"lower share, at most {(inputs - 1) / inputs:.4g}"
            )


def keep(score_IO: jax.Array, pruning: Pruning, among: Among) -> jax.Array:
    """True for the weights that stay, bool [I, O]: all but the least scores, counted exactly. Of
    equal scores the later inputs stay."""
    inputs, outputs = score_IO.shape
    if pruning.pattern:
        kept, of = pruning.pattern
        ranks = _ranks(score_IO.reshape(inputs // of, of, outputs), axis=1)
        return (ranks >= of - kept).reshape(inputs, outputs)
    if among == "output":
        return _ranks(score_IO, axis=0) >= round(pruning.share * inputs)
    removed = round(pruning.share * math.prod(score_IO.shape))
    return (_ranks(score_IO.reshape(-1), axis=0) >= removed).reshape(inputs, outputs)


def _ranks(scores: jax.Array, axis: int) -> jax.Array:
    """The place of each score among those along an axis, 0 for the least. Sorted twice: a threshold
    would prune more than was asked where scores are equal."""
    return jnp.argsort(jnp.argsort(scores, axis=axis), axis=axis)
