"""Frozen trees that a run keeps beside its base, by the names under which objectives ask for them.

The base holds the frozen parameters that the trained ones are attached to. A further tree is
attached in the same way: `attach(held["base"], held["reference"])` gives the model's parameters
before the first step.
"""

from collections.abc import Callable, Iterable

from research.tree import Tree

# One row for each tree: a function from the trained tree (of specs, shapes or first values) to it.
# The result may share arrays with the trained tree; the caller copies them.
HELD: dict[str, Callable[[Tree], Tree]] = {
    # The trained parameters, as they were before the first step.
    "reference": lambda trainable: trainable,
}


def held_trees(names: Iterable[str], trainable: Tree) -> dict[str, Tree]:
    """The trees of these names by name, made from `trainable`. ValueError for an unknown name."""
    for name in names:
        if name not in HELD:
            raise ValueError(f"an objective holds {name!r}; choose from {', '.join(HELD)}")
    return {name: HELD[name](trainable) for name in names}
