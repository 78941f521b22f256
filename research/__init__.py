"""Graft: weights are a tree, and everything done to a model is a graft on that tree.

from research import load  # any checkpoint as a model, see research.interop.load.load
"""

from typing import TYPE_CHECKING, Any

from research.devices import nodes

if TYPE_CHECKING:
    from research.interop.load import load as load

nodes.choose_platform()  # before JAX is used, which then looks for no accelerator in vain


def __getattr__(name: str) -> Any:
    """`load`, imported when it is asked for: commands answer a wrong flag before JAX is there."""
    if name != "load":
        raise AttributeError(f"module 'research' has no attribute {name!r}")
    from research.interop.load import load

    return load
