"""Which matrices get a low-rank adapter, of what rank, and its initial values, as specs."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from research import tree
from research.weights.lora import LoraAdapter
from research.weights.matrices import ALL_LINEAR, LINEAR, split_axes

STARTS = ("default", "pissa", "olora", "loftq")


@dataclass(frozen=True)
class LoraConfig:
    """The section config.lora: low-rank adapters.

    rank, alpha          the update is alpha / rank a b; rank 16 with alpha 32 is a common choice
    targets              regex of names, or of whole paths, of the matrices that get an adapter;
                         "all-linear" is every matrix of the layers
    rank_rules           ordered (path regex, rank) for matrices of another rank; 0 is no adapter
    alpha_rules          ordered (path regex, alpha) for matrices of another alpha
    dropout              share of the adapters' inputs dropped in training
    rank_stable          the update is alpha / sqrt(rank) a b (rsLoRA, arXiv:2312.03732)
    decompose            magnitude and direction are trained separately (DoRA, arXiv:2402.09353)
    start                "default": a uniform, b zero. Others split a weight in base and adapter:
                         "pissa" (arXiv:2404.02948), "olora" (arXiv:2406.01775) or "loftq"
                         (arXiv:2310.08659), see research/tuning/lora_init.py
    learning_rate_ratio  learning rate of b over that of a (LoRA+, arXiv:2402.12354)
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = ALL_LINEAR
    rank_rules: tuple[tuple[str, int], ...] = ()
    alpha_rules: tuple[tuple[str, float], ...] = ()
    dropout: float = 0.0
    rank_stable: bool = False
    decompose: bool = False
    start: str = "default"
    learning_rate_ratio: float = 1.0

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout} must lie in [0, 1)")
        if self.start not in STARTS:
            raise ValueError(f"lora.start={self.start!r}; choose one of {', '.join(STARTS)}")
        for name in ("alpha", "learning_rate_ratio"):
            if not 0 < getattr(self, name) < math.inf:  # so is NaN, which compares with nothing
                raise ValueError(f"lora.{name}={getattr(self, name)} must be positive")
        for name in ("rank_rules", "alpha_rules"):
            for pattern, number in getattr(self, name):
                if not 0 <= number < math.inf:
                    raise ValueError(
                        f"lora.{name} gives {pattern!r} {number}, which must be at least 0"
                    )
        try:
            [
                re.compile(pattern)
                for pattern in (
                    self.targets,
                    *(rule[0] for rule in self.rank_rules + self.alpha_rules),
                )
            ]
        except re.error as error:
            raise ValueError(f"lora.targets or a rule is no regular expression: {error}") from None


def lora_specs(specs: tree.Tree, config: LoraConfig) -> tree.Tree:
    """Adapters as specs: a tree of `LoraAdapter` at the paths of the matrices that get one, with
    axes derived from the matrices'.

    A fresh adapter changes nothing: `a` is uniform within 1 / sqrt(inputs) and `b` is zero, as in
    peft. ValueError for targets that match nothing or that are not matrices, and for a rank above
    the matrix's.
    """
    by_path = tree.paths(specs)
    chosen = tree.match(LINEAR if config.targets == ALL_LINEAR else config.targets, by_path)
    # Rules may only change matrices that `targets` chose; a rule that reached further would adapt
    # a matrix which nobody asked for.
    ranks, alphas = (
        {**dict.fromkeys(chosen, default), **_ruled(rules, chosen)}
        for rules, default in ((config.rank_rules, config.rank), (config.alpha_rules, config.alpha))
    )
    adapters = {
        path: _adapter(path, by_path[path], ranks[path], alphas[path], config)
        for path in chosen
        if ranks[path]
    }
    return tree.unflatten(adapters)


def _ruled(rules: Sequence[tuple[str, Any]], paths: Sequence[str]) -> dict[str, Any]:
    """The choice of the first matching rule, for each path that any rule matches."""
    choices: dict[str, Any] = {}
    # Reversed, so that the first rule writes last and wins.
    for pattern, choice in reversed(rules):
        choices |= dict.fromkeys(tree.match(pattern, paths), choice)
    return choices


def _adapter(path: str, w: Any, rank: int, alpha: float, config: LoraConfig) -> LoraAdapter:
    # The rank of a product [I, R] [R, O] is bounded by the smaller side of one matrix; stacked
    # layers each have their own.
    stack, inner, outer = split_axes(path, w)
    sizes = [math.prod(size for size, _ in axes) for axes in (inner, outer)]
    if rank > min(sizes):
        raise ValueError(
            f"rank {rank} is over the {min(sizes)} of {path}; set config.lora.rank or a rule to a "
            "lower one"
        )

    # A table is read by rows, each of which would need the norms of all columns; experts' products
    # are grouped by tokens and have no place for a gain.
    if config.decompose and (w.inputs < 0 or "experts" in w.axes):
        raise ValueError(
            f"DoRA is not for tables or experts; leave {path} out of config.lora.targets, or take "
            "lora"
        )

    # The factors keep the logical axes of the weight, so they are sharded as it is.
    def _spec(axes, init, dtype=None, kind=""):
        return replace(
            w,
            shape=tuple(s for s, _ in axes),
            axes=tuple(a for _, a in axes),
            init=init,
            dtype=dtype,
            inputs=1,
            kind=kind,
        )

    # With alpha / R the update shrinks as the rank grows; rsLoRA's alpha / sqrt(R) keeps its size
    # (arXiv:2312.03732, theorem 3.2).
    low, scale = [(rank, "rank")], alpha / (math.sqrt(rank) if config.rank_stable else rank)
    return LoraAdapter(
        # kaiming_uniform with a = sqrt(5), torch's default for linear layers and peft's for A.
        a=_spec([*stack, *inner, *low], _uniform(1 / math.sqrt(sizes[0]))),
        # With b zero the update is zero, and only b has a gradient in the first step.
        b=_spec([*stack, *low, *outer], _constant(0.0)),
        # float32 whatever the parameters are in: bfloat16 would round alpha / rank.
        scale=_spec(stack, _constant(scale), "float32", "constant"),
        magnitude=_spec([*stack, *outer], _constant(1.0)) if config.decompose else None,
        table=w.inputs < 0,
        dropout=config.dropout,
    )


def _uniform(bound: float):
    def init(key, shape, dtype, sharding):
        return jax.random.uniform(
            key, shape, jnp.float32, -bound, bound, out_sharding=sharding
        ).astype(dtype)

    return init


def _constant(value: float):
    def init(key, shape, dtype, sharding):
        return jnp.full(shape, value, dtype, out_sharding=sharding)

    return init
