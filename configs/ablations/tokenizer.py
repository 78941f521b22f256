"""The tokenizer: bytes, or byte pairs of several vocabularies.

    python -m research.sweep run --config=configs/ablations/tokenizer.py --workdir=sweeps/tokenizer

Losses in nats per token of different tokenizers cannot be compared, bits per byte of the text can,
so these are the metric. All runs have the same windows of 128 tokens, which hold more text the
larger the vocabulary. Expected: bytes are clearly worst after so few steps, each fourfold
vocabulary is better than the last, and the gain shrinks while the head costs more.

24 runs of about a minute on one core; `:smoke` takes seconds. What is expected was not measured
with this file.
"""

from research.experiment import parse_arg, small_config
from research.sweep import Sweep, choice, seeds


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny."""
    return small_config(parse_arg(arg, smoke=False).smoke)


def get_sweep(arg: str = ""):
    """Four vocabularies; the baseline has 512 tokens."""
    smoke = parse_arg(arg, smoke=False).smoke
    kinds = {"bpe 512": {}, "bytes": {"data.tokenizer": "bytes"}}
    for size in () if smoke else (2048, 8192):
        kinds[f"bpe {size}"] = {"data.tokenizer": f"bpe:{size}", "model.vocab_size": size}
    better = {"eval/bits_per_byte": "lower"}
    return Sweep(choice("tokenizer", kinds), seeds=seeds(2 if smoke else 6), metrics=better)
