"""What each parameter is to the optimizer: a matrix, a vector, a table, or a constant.

    kind       decays        Muon    what it is
    matrix     yes           yes     kernels, the factors of LoRA, bottlenecks
    vector     no            AdamW   norms, biases, DoRA's magnitudes; IA3's factors, which start at
                                     1 and mean nothing at 0 (arXiv:2205.05638, section 3.3)
    table      if embeddings AdamW   embeddings; the virtual tokens of prompts and prefixes, which
               do                    decay in arXiv:2104.08691, section 3.1
    constant   never         never   LoRA's alpha / rank: in the tree because it may differ by
                                     layer, but no parameter

A spec declares its kind where the axes do not tell it (`research.models.spec.Spec.kind`). A rule of
config.optimizer.weight_decay_rules overrides the second column, except for constants.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.training.muon import matrix_axes

KINDS = ("matrix", "vector", "table", "constant")
# A parameter with one of these logical axes is a table that is read by rows.
_TABLES = ("vocab", "position", "bucket")


def kind_of(axes: str, declared: str = "") -> str:
    """The kind of a parameter with these logical axes, such as "layers embed mlp"; what its spec
    declares comes first. ValueError for a kind that is none of `KINDS`."""
    if declared and declared not in KINDS:
        raise ValueError(f"a spec has kind={declared!r}; choose one of {', '.join(KINDS)}")
    if declared:
        return declared
    # The axes' names and not their number: a stacked bias [L, F] is a vector with two axes.
    if matrix_axes(axes.split()) is None:
        return "vector"
    return "table" if set(axes.split()) & set(_TABLES) else "matrix"


def kinds_of(names: tree.Tree, specs: tree.Tree | None = None) -> tree.Tree:
    """The kind of each parameter, from a tree of logical axes and one of specs like it, if any."""
    if specs is None:
        return jax.tree.map(kind_of, names)
    return jax.tree.map(lambda name, spec: kind_of(name, spec.kind), names, specs)


def decay_multiples(rules: Any, decay_embeddings: bool, names: tree.Tree, kinds: tree.Tree):
    """Multiples of the weight decay by parameter: those of the rules, or without rules by kind."""
    if rules:
        chosen = tree.choose(rules, names)
        return jax.tree.map(lambda m, kind: 0.0 if kind == "constant" else m, chosen, kinds)
    # As a tree of multiples, so that kinds and rules go through one code path.
    decaying = ("matrix", "table") if decay_embeddings else ("matrix",)
    return jax.tree.map(lambda kind: float(kind in decaying), kinds)


def hold_constants(
    transform: optax.GradientTransformation, kinds: tree.Tree
) -> optax.GradientTransformation:
    """`transform` whose updates of constants are zero. Its state is unchanged, so checkpoints of
    runs from before this was here still fit."""

    def _update(updates, state, params=None):
        updates, state = transform.update(updates, state, params)
        # The last link of the chain, so that whatever came before, constants stay.
        held = jax.tree.map(
            lambda u, kind: jnp.zeros_like(u) if kind == "constant" else u, updates, kinds
        )
        return held, state

    return optax.GradientTransformation(transform.init, _update)


def count_trained(specs: tree.Tree) -> int:
    """Number of parameters that are trained: all but constants."""
    return tree.count([spec for spec in jax.tree.leaves(specs) if spec.kind != "constant"])


def constants_under_rules(rules: Any, specs: tree.Tree) -> list[str]:
    """A line if rules of weight decay reach constants, which decayed in older versions; else []."""
    names = jax.tree.map(lambda spec: spec.kind, specs)
    # Said and not refused: a catch-all rule such as (".*", 1) reaches them too.
    reached = [
        multiple
        for multiple, kind in zip(
            jax.tree.leaves(tree.choose(rules, names)) if rules else (), jax.tree.leaves(names)
        )
        if multiple and kind == "constant"
    ]
    if not reached:
        return []
    return [
        f"weight_decay_rules reach {len(reached)} constants (alpha / rank of adapters), which do "
        "not decay"
    ]
