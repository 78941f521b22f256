"""Width x learning rate, as usual and with muP, whose best rate does not move with the width.

    python -m research.sweep run --config=configs/ablations/width_rate.py --workdir=sweeps/width

muP (arXiv:2203.03466, table 8, for AdamW) in the optimizer's and the model's own terms, at m times
the base width, with heads of one size:

    what                            standard deviation at the start  multiple of the rate
    table of embeddings, vectors    as at the base                   1
    matrices of the layers          1 / sqrt(fan in)                 1 / m
    head, here the table again      as at the base                   1, of states / m

The starts are those of model.init="t5", and "usual" has them too; rates and the division of the
states are optimizer.learning_rate_rules and model.head_scale. Expected (figure 1 there): with muP
the best of four rates is the same at 64 and at 256, and 256 is the better model at each rate; as
usual it falls by a step of three or more. So the rate of a large model is found on a small one.

96 runs, the wide ones of two minutes on one core; `:smoke` takes seconds. What is expected is from
the paper and was not measured with this file.
"""

from research.experiment import parse_arg, small_config
from research.sweep import Sweep, choice, factor, product, seeds

BASE_WIDTH = 32
MATRICES = r"layers/.*/(query|key|value|out|gate|up|down)"


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short."""
    c = small_config(parse_arg(arg, smoke=False).smoke)
    c.model.init = "t5"
    return c


def get_sweep(arg: str = ""):
    """Two widths, each as usual and with muP, at four rates; the baseline is muP at width 64."""
    smoke = parse_arg(arg, smoke=False).smoke
    narrow, wide = (16, 64) if smoke else (64, 256)
    models = {
        f"{name} {width}": shape(width) | (mup(width) if name == "muP" else {})
        for name in ("muP", "usual")
        for width in (narrow, wide)
    }
    rates = (1e-2, 3e-2) if smoke else (1e-2, 3e-3, 3e-2, 1e-1)
    rate = factor("rate", "optimizer.learning_rate", rates)
    return Sweep(product(choice("model", models), rate), seeds=seeds(2 if smoke else 6))


def shape(width: int):
    """A model of this width, with heads of 16."""
    return {
        "model.d_model": width,
        "model.d_ff": 3 * width,
        "model.heads": width // 16,
        "model.kv_heads": width // 16,
        "model.head_size": 16,
    }


def mup(width: int):
    """What muP multiplies at this width."""
    m = width / BASE_WIDTH
    return {
        "optimizer.learning_rate_rules": ((MATRICES, 1 / m), (".*", 1.0)),
        "model.head_scale": 1 / m,
    }
