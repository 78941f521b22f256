"""Packing on or off: windows filled with several short texts, or a text a window and padding.

    python -m research.sweep run --config=configs/ablations/packing.py --workdir=sweeps/packing

The texts are the code and the descriptions of tensorflow_datasets' data sets, most of them shorter
than a window of 512 tokens. Packed texts do not see each other, so a token's context is its own
text either way, and the held-out windows are the same ones, always packed. Without packing a fifth
of a window is padding, so that a step learns from a fifth fewer tokens. Expected: packing is better
at equal steps, and by about as much as a run of a fifth fewer steps is worse (arXiv:2107.02027,
section 3).

Measured with six seeds (CPU, JAX 0.10.2), held-out loss in nats per token:

    level  difference from packed  95% interval      detectable  verdict
    off    +0.011                  -0.156 to +0.177  0.23        no evidence

So what a fifth of the tokens is worth is less than six runs of 150 steps can see on these texts,
whose losses of two seeds differ by up to 0.26. `add --seeds=N` goes on from there.

12 runs of half a minute to a minute on one quiet core; `:smoke` takes seconds.
"""

from importlib.util import find_spec
from pathlib import Path

from research.experiment import parse_arg, small_config
from research.sweep import Sweep, choice, seeds


def get_config(arg: str = ""):
    """What the runs share. `:smoke` makes them short and the model tiny."""
    smoke = parse_arg(arg, smoke=False).smoke
    c = small_config(smoke)
    if not smoke:
        [package] = find_spec("tensorflow_datasets").submodule_search_locations
        c.data.source = str(Path(package) / "datasets")
        c.data.sequence_length = c.model.max_length = 512
        c.data.batch_size = 4
    return c


def get_sweep(arg: str = ""):
    """Packing and none; the baseline is packed."""
    ways = {"on": {}, "off": {"data.packing": False}}
    smoke = parse_arg(arg, smoke=False).smoke
    return Sweep(choice("packing", ways), seeds=seeds(2 if smoke else 6))
