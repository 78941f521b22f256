"""Optimizer x learning rate.

    python -m research.sweep run --config=configs/ablations/optimizer_rate.py --workdir=sweeps/rate

Each optimizer has a rate of its own at which it is best, which is why a comparison of optimizers at
one rate says little: AdamW (arXiv:1711.05101), Lion (arXiv:2302.06675, which wants a third to a
tenth of AdamW's rate) and Muon (kellerjordan.github.io/posts/muon). Expected, as the best of each
row: Muon ends below AdamW, whose best rate here is 1e-2, and Lion is best at 3e-3 and worse than
both at 3e-2.

54 runs of about a minute on one core. `:smoke` is the same of runs of seconds and two seeds, which
are too few for a verdict. What is expected is from the papers and was not measured with this file.
"""

from research.experiment import parse_arg, small_config
from research.sweep import Sweep, factor, product, seeds


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny."""
    return small_config(parse_arg(arg, smoke=False).smoke)


def get_sweep(arg: str = ""):
    """Three optimizers at three learning rates; the baseline is AdamW at 1e-2."""
    smoke = parse_arg(arg, smoke=False).smoke
    optimizer = factor("optimizer", "optimizer.name", ["adamw", "lion", "muon"])
    rate = factor("rate", "optimizer.learning_rate", [1e-2, 3e-3, 3e-2])
    return Sweep(product(optimizer, rate), seeds=seeds(2 if smoke else 6))
