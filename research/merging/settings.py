"""`MergeSettings`: what a merge was asked for, checked and complete."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MergeSettings:
    """How to merge.

    weights  one for each model, in their order; of SLERP one alone, the second model's share
    scale    multiplies what is added to the base (lambda)
    density  share of each task vector that is kept, above 0 and at most 1
    seed     of what DARE keeps: each tensor's values are drawn by this number, the tensor's name
             and its layer
    """

    weights: tuple[float, ...]
    scale: float = 1.0
    density: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.density <= 1:
            raise ValueError(f"--density={self.density:g} wants a share above 0 and at most 1")
