"""How positions are told: rotated queries and keys, a learned table, sines, or offsets by distance.

    python -m research.sweep run --config=configs/ablations/positions.py --workdir=sweeps/positions

RoPE (arXiv:2104.09864) is the baseline; a learned table is GPT-2's, sines are those of
arXiv:1706.03762, and relative offsets are T5's (arXiv:1910.10683). "rope, half" rotates in every
other layer, and in the others the causal mask alone tells positions (arXiv:2501.18795). Expected:
RoPE in all or half of the layers and the relative offsets ahead of the others, the learned table
last, which has to learn in 150 steps what the others are given.

30 runs of about a minute on one core; `:smoke` takes seconds. What is expected is from the papers
and was not measured with this file.
"""

from research.experiment import parse_arg, small_config
from research.sweep import Sweep, choice, seeds


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny."""
    return small_config(parse_arg(arg, smoke=False).smoke)


def get_sweep(arg: str = ""):
    """Five ways; the baseline is RoPE."""
    smoke = parse_arg(arg, smoke=False).smoke
    ways = {way: {"model.position": way} for way in ("rope", "learned", "sinusoidal", "relative")}
    ways["rope, half"] = {"model.unrotated_every": 2}
    return Sweep(choice("positions", ways), seeds=seeds(2 if smoke else 6))
