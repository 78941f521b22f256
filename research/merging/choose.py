"""What the flags of a merge mean together; a setting that the method does not read is refused."""

from collections.abc import Sequence

from research.experiment.fields import nearest
from research.merging.methods import METHODS, Method
from research.merging.settings import MergeSettings


def choose(
    name: str,
    models: int,
    base: bool,
    weights: Sequence[float] = (),
    scale: float | None = None,
    density: float | None = None,
    seed: int | None = None,
) -> tuple[Method, MergeSettings]:
    """The method and its complete settings for this number of models, with or without a base.

    Weights are 1 each by default, of SLERP 0.5. ValueError for an unknown method, a missing base or
    model, weights of another number or of sum 0, and for a setting that changes nothing.
    """
    if name not in METHODS:
        raise ValueError(f"there is no --method={name}; {nearest(name, METHODS)}")
    method = METHODS[name]
    if method.tasks and not base:
        raise ValueError(f"--method={name} adds to a base: give --base=CHECKPOINT, their start")
    settable = {
        "scale": (scale, method.tasks),
        "density": (density, method.density is not None),
        "seed": (seed, method.random),
    }
    for flag, (given, read) in settable.items():
        if given is not None and not read:
            raise ValueError(f"--{flag}={given:g} changes nothing in --method={name}; leave it out")
    return method, MergeSettings(
        _slerp_share(models, weights) if name == "slerp" else _weights(name, models, weights),
        1.0 if scale is None else scale,
        (method.density or 1.0) if density is None else density,
        seed or 0,
    )


def _slerp_share(models: int, weights: Sequence[float]) -> tuple[float]:
    if models != 2:
        raise ValueError(f"--method=slerp merges two models, a --base counts as one; got {models}")
    if len(weights) > 1 or not all(0 <= share <= 1 for share in weights):
        raise ValueError("--method=slerp wants one --weight from 0 to 1, the second model's share")
    return (weights[0] if weights else 0.5,)


def _weights(name: str, models: int, weights: Sequence[float]) -> tuple[float, ...]:
    if models == 0:
        raise ValueError("there is nothing to merge; give --model=CHECKPOINT, more than once")
    weights = tuple(weights) or (1.0,) * models
    if len(weights) != models:
        raise ValueError(f"{len(weights)} times --weight for {models} models; give one for each")
    if name == "linear" and abs(sum(weights)) < 1e-8:
        raise ValueError("the weights of --method=linear sum to 0; choose others for the mean")
    return weights
