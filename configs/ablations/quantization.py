"""The format of the frozen weights x the method of tuning: SmolLM2-135M on Alpaca's rows.

    python -m research.sweep run --config=configs/ablations/quantization.py --workdir=sweeps/formats

Expected (arXiv:2305.14314, tables 3 and 4): int8 is no worse than 16 bits within what six seeds can
see; NF4 loses a little on a model this small, less than FP4, and adapters win most of it back; DoRA
(arXiv:2402.09353) is about LoRA.

48 runs of 60 steps, about 5 minutes each on two cores. `:smoke` is a random tiny model on Python's
standard library, without network. What is expected is from the papers and was not measured with
this file.
"""

from research.experiment import parse_arg, small_tuned_config
from research.sweep import Sweep, choice, factor, product, seeds


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny and random."""
    smoke = parse_arg(arg, smoke=False).smoke
    c = small_tuned_config(smoke)
    if smoke:
        c.model.d_model, c.model.d_ff, c.model.head_size = 64, 128, 16  # blocks of 64 weights
    return c


def get_sweep(arg: str = ""):
    """Four formats with LoRA and DoRA; the baseline is LoRA on weights as they are."""
    smoke = parse_arg(arg, smoke=False).smoke
    formats = ("", "nf4") if smoke else ("", "int8", "nf4", "fp4")
    weights = factor("format", "quantize.format", formats)
    method = choice("method", {"lora": {}, "dora": {"lora.decompose": True}})
    return Sweep(product(weights, method), seeds=seeds(2 if smoke else 6))
