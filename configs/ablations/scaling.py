r"""A ladder of sizes and of training tokens for the scaling law (arXiv:2203.15556, approach 3).

    python -m research.sweep scaling --config=configs/ablations/scaling.py --workdir=sweeps/law \
        --workers=2

Six sizes, whose width and depth grow together, on three numbers of tokens; the largest size is left
out of the fit, and its loss predicted. The learning rate falls with the square root of the width,
as the best one of AdamW does roughly, so that no size is held back by it; every run has its own
cosine over its own length, without which the shorter ones would be cut off high (section 3.1
there). Expected: the largest size within 1.5% of the prediction, and exponents of 0.2 to 0.6; on so
little text alpha is less certain than beta. About half an hour on two cores.

`:smoke` is four sizes on three lengths of steps that take seconds, too short for a law that means
anything.
"""

from research.experiment import parse_arg, small_config
from research.sweep import Sweep, choice, factor, product, seeds

WIDTHS = {"32": 1, "48": 2, "64": 2, "96": 3, "128": 4, "192": 4}  # layers by width
STEPS = (100, 200, 400)


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short."""
    c = small_config(parse_arg(arg, smoke=False).smoke)
    c.train.eval_every = 0
    return c


def get_sweep(arg: str = ""):
    """Sizes x steps, with two seeds of each."""
    args = parse_arg(arg, smoke=False)
    widths = list(WIDTHS)[:4] if args.smoke else list(WIDTHS)
    size = choice("width", {width: _size(int(width)) for width in widths})
    steps = factor("steps", "train.steps", (4, 6, 8) if args.smoke else STEPS)
    return Sweep(product(size, steps), seeds=seeds(1 if args.smoke else 2))


def _size(width: int):
    heads = max(2, width // 16)
    return {
        "model.d_model": width,
        "model.layers": WIDTHS[str(width)],
        "model.heads": heads,
        "model.kv_heads": heads,
        "model.head_size": width // heads,
        "model.d_ff": 8 * width // 3 // 8 * 8,
        "optimizer.learning_rate": 0.01 * (32 / width) ** 0.5,
    }
