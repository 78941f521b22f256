"""Depth versus width, at about the same number of weights in the layers.

    python -m research.sweep run --config=configs/ablations/depth_width.py --workdir=sweeps/shape

Expected: a flat optimum (arXiv:2001.08361, figure 5: shapes within a factor of ten differ by a few
per cent), with one wide layer clearly worse, since one layer of attention cannot look at what
another one found (arXiv:2209.11895). Losses are compared at equal FLOPs too: the head's share grows
with the width.

24 runs of about a minute on one core; `:smoke` takes seconds. What is expected is from the papers
and was not measured with this file.
"""

from research.experiment import parse_arg, small_config
from research.sweep import Sweep, choice, seeds

# layers: (width, feed-forward width), for about 400,000 weights in all layers.
SHAPES = {2: (128, 352), 1: (184, 488), 4: (88, 256), 8: (64, 176)}


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny."""
    return small_config(parse_arg(arg, smoke=False).smoke)


def get_sweep(arg: str = ""):
    """Four shapes; the baseline has two layers."""
    smoke = parse_arg(arg, smoke=False).smoke
    shapes = {
        f"{layers} x {width}": {
            "model.layers": layers,
            "model.d_model": width,
            "model.d_ff": d_ff,
            "model.head_size": width // 4,
        }
        for layers, (width, d_ff) in SHAPES.items()
        if layers < 4 or not smoke
    }
    return Sweep(choice("layers x width", shapes), seeds=seeds(2 if smoke else 6))
