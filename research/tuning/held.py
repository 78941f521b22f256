"""Frozen trees that a run holds beside the base, by the names that objectives ask for.

A run's base is what its trained parameters lie on. Further trees lie on the base in the same way:
`attach(held["base"], held["reference"])` are the parameters of the model before the first step.
"""

from collections.abc import Callable, Iterable

from research.tree import Tree

# One row a tree: from what is trained, specs, shapes or first values, to the tree. A row that gives
# arrays gives those of the trained tree; the caller copies them.
HELD: dict[str, Callable[[Tree], Tree]] = {
    # What was trained, as it was before the first step.
    "reference": lambda trainable: trainable,
}


def held_trees(names: Iterable[str], trainable: Tree) -> dict[str, Tree]:
    """The trees of these names, from `trainable`. ValueError for a name that `HELD` has not."""
    for name in names:
        if name not in HELD:
            raise ValueError(f"an objective holds {name!r}; choose from {', '.join(HELD)}")
    return {name: HELD[name](trainable) for name in names}
