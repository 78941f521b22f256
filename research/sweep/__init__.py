"""Sweeps that end in an answer: named factors, a ledger of cells, and paired differences from a
baseline with their intervals.

A config file of a sweep needs this package and `research.experiment` alone:

    from research.sweep import Sweep, chain, choice, factor, product, seeds, zipped
"""

from research.sweep.design import (
    Design,
    Halving,
    Sweep,
    chain,
    choice,
    factor,
    product,
    seeds,
    zipped,
)

__all__ = ["Design", "Halving", "Sweep", "chain", "choice", "factor", "product", "seeds", "zipped"]
