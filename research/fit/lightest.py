"""What a run chooses for `execution.remat="auto"` and `execution.head_tokens=0`: the lightest remat
policy that fits a device by estimate, then the most tokens of the head that still fit.

By closed form alone, some hundredths of a second: a start of a run must not wait for a compile.
"""

from dataclasses import replace

from research.experiment.config import Experiment
from research.fit.estimate import MARGIN, estimate
from research.fit.targets import Target
from research.fit.weigh import Weights, weigh
from research.objectives.choose import objective_class
from research.ops.token_chunks import CHUNK

# Each keeps less on the device than the one before, and computes or moves more.
POLICIES = ("none", "dots", "full", "offload")
# At 8 chunks' worth of tokens the sums of the head's gradient are an eighth of the traffic that
# they are at one; from there on more logits gain nothing.
HEAD_TOKENS = (8 * CHUNK, 4 * CHUNK, 2 * CHUNK, CHUNK)


def is_open(experiment: Experiment) -> bool:
    """Whether the experiment leaves something to be chosen."""
    return experiment.execution.remat == "auto" or _counts_tokens(experiment)


def settled(
    experiment: Experiment, target: Target, room: float | None, weights: Weights | None = None
) -> Experiment:
    """The experiment with everything chosen that it leaves open, so that a step takes at most
    `room` bytes of a device by an estimate with its margin; what it sets itself stays.

    Where no policy fits, a device with a memory of its own takes the one that keeps least, and a
    CPU "none", which is also taken where `room` is None. A CPU keeps CHUNK tokens of the head: its
    losses do not depend on how much memory was free. ValueError as from `estimate`.
    """
    if not is_open(experiment):
        return experiment
    e, on_cpu = experiment, target.platform == "cpu"
    weights = weigh(e, target) if weights is None else weights

    def _fits(candidate: Experiment) -> bool:
        return room is not None and MARGIN * estimate(candidate, target, weights).total <= room

    if e.execution.remat == "auto":
        policies = POLICIES[:3] if on_cpu else POLICIES  # "offload" is "full" on a CPU
        otherwise = "none" if room is None or on_cpu else POLICIES[-1]
        e = _first([_with(e, remat=remat) for remat in policies], _fits, _with(e, remat=otherwise))
    if _counts_tokens(e):
        sizes = HEAD_TOKENS[-1:] if on_cpu else HEAD_TOKENS
        smallest = _with(e, head_tokens=CHUNK)
        e = _first([_with(e, head_tokens=size) for size in sizes], _fits, smallest)
    return e


def _counts_tokens(e: Experiment) -> bool:
    """Whether `head_tokens` is open; a classifier has logits of whole texts alone."""
    objective = objective_class(e.objective.name)
    return not (e.execution.head_tokens or objective.classifies or objective.scores_texts)


def _first(candidates, fits, otherwise: Experiment) -> Experiment:
    return next((one for one in candidates if fits(one)), otherwise)


def _with(e: Experiment, **changes: object) -> Experiment:
    return replace(e, execution=replace(e.execution, **changes))
