"""How far attention sees: the whole text, or a window, in all layers or in every other one.

    python -m research.sweep run --config=configs/ablations/window.py --workdir=sweeps/window

Windows are Mistral's (arXiv:2310.06825, section 2), every other layer with all of the text is
Gemma 2's (arXiv:2408.00118). Expected: the loss rises as the window shrinks, and most of that is
won back where every other layer sees everything. Cost is told in FLOPs, of which attention is a
small part in texts of 128 tokens.

36 runs of about a minute on one core; `:smoke` takes seconds. What is expected is from the papers
and was not measured with this file.
"""

from research.experiment import parse_arg, small_config
from research.sweep import Sweep, choice, seeds


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny."""
    return small_config(parse_arg(arg, smoke=False).smoke)


def get_sweep(arg: str = ""):
    """Six ways to look back; the baseline sees the whole text."""
    smoke = parse_arg(arg, smoke=False).smoke
    ways = {"all": {}}
    for size in (4, 8) if smoke else (4, 16, 64):
        ways[f"{size}"] = {"model.window": size}
    for size in (4,) if smoke else (4, 16):
        ways[f"{size}, every other layer"] = {"model.window": size, "model.global_every": 2}
    return Sweep(choice("window", ways), seeds=seeds(2 if smoke else 6))
