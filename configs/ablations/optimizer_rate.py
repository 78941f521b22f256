"""Optimizer x learning rate, on a small LLaMA-type model and Python's standard library.

    python -m research.sweep run --config=configs/ablations/optimizer_rate.py --workdir=sweeps/rate

Each optimizer has a rate of its own at which it is best, which is why a comparison of optimizers at
one rate says little: AdamW (arXiv:1711.05101) is best near 3e-3 here and Muon
(kellerjordan.github.io/posts/muon, orthogonalized momentum) at three times that. Expected: Muon at
its best rate ends below AdamW at its own; a rate of 3e-2 is worse than 1e-2 for both.

54 runs of about a minute on one core. `:smoke` is the same sweep of runs of seconds and two seeds,
which are too few for a verdict.
"""

from research.experiment import base_config, parse_arg
from research.sweep import Sweep, factor, product, seeds


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny."""
    args = parse_arg(arg, smoke=False)
    c = base_config()
    c.data.source = "stdlib"
    c.data.tokenizer = "bpe:512"
    c.data.sequence_length = 128
    c.data.batch_size = 16

    c.model.preset = "smollm2_135m"  # its architecture, at these sizes
    c.model.vocab_size = 512
    c.model.layers = 2
    c.model.d_model = 128
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = 32
    c.model.d_ff = 352
    c.model.max_length = 128

    c.train.steps = 150
    c.train.eval_every = 25
    c.train.eval_batches = 4
    c.train.sample_tokens = 0
    c.checkpoint.every = 50
    c.precision.compute = "float32"
    c.execution.unroll = 0
    if args.smoke:
        c.data.sequence_length = c.model.max_length = 32
        c.data.batch_size = 4
        c.model.d_model, c.model.d_ff, c.model.head_size = 32, 64, 8
        c.train.steps = 8
        c.train.log_every = c.train.eval_every = 4
        c.train.eval_batches = 1
        c.checkpoint.every = 4
    return c


def get_sweep(arg: str = ""):
    """Three optimizers at three learning rates; the baseline is AdamW at 3e-3."""
    args = parse_arg(arg, smoke=False)
    optimizer = factor("optimizer", "optimizer.name", ["adamw", "lion", "muon"])
    rate = factor("rate", "optimizer.learning_rate", [3e-3, 1e-2, 3e-2])
    return Sweep(product(optimizer, rate), seeds=seeds(2 if args.smoke else 6))
