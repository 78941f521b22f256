"""LoRA's rank x which matrices get an adapter, fine-tuning SmolLM2-135M on Alpaca's rows.

    python -m research.sweep run --config=configs/ablations/lora_rank.py --workdir=sweeps/rank

Expected (arXiv:2106.09685, table 6; arXiv:2305.14314, figure 2): adapters on all linear matrices
beat those on queries and values alone at any rank, while the rank itself matters little from 4 or 8
on. alpha is twice the rank, so that the update's scale does not change with it.

48 runs of 60 steps, about 5 minutes each on two cores. `:smoke` is a random tiny model on Python's
standard library, without network. What is expected is from the papers and was not measured with
this file.
"""

from research.experiment import parse_arg, small_tuned_config
from research.sweep import Sweep, choice, factor, product, seeds


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny and random."""
    return small_tuned_config(parse_arg(arg, smoke=False).smoke)


def get_sweep(arg: str = ""):
    """Four ranks on two choices of matrices; the baseline is rank 8 on all."""
    smoke = parse_arg(arg, smoke=False).smoke
    ranks = (8, 2) if smoke else (8, 2, 4, 32)
    rank = choice("rank", {f"{r}": {"lora.rank": r, "lora.alpha": 2.0 * r} for r in ranks})
    matrices = factor("matrices", "lora.targets", ["all-linear", "query|value"])
    return Sweep(product(rank, matrices), seeds=seeds(2 if smoke else 6))
