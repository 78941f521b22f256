"""Subsets of grouped data: as many of each group, drawn by a seed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Strata:
    """limit  how many are drawn of each group, 0 for all
    seed   0 takes the first ones, another number draws them
    least  fewest that a group may have

    With five or fewer an interval is wider than most effects; with ten, one of a share is at most
    0.53 wide.
    """

    limit: int = 0
    seed: int = 1
    least: int = 10

    def __post_init__(self):
        if self.limit < 0 or self.seed < 0 or self.least < 1:
            raise ValueError(
                f"limit={self.limit} and seed={self.seed} must not be negative, and "
                f"least={self.least} positive"
            )
        if self.limit and self.limit < self.least:
            raise ValueError(
                f"limit={self.limit} of each group is below least={self.least}; set "
                f"limit={self.least} or more"
            )

    def draw(self, things: Sequence[T], group: Callable[[T], str], what: str) -> list[T]:
        """Those of each group that are drawn, in the order of `things`. ValueError for a group with
        fewer than `least`, which says how many it needs; `what` names the things."""
        groups: dict[str, list[int]] = {}
        for number, thing in enumerate(things):
            groups.setdefault(group(thing), []).append(number)
        chosen: list[int] = []
        for name, numbers in sorted(groups.items()):
            if len(numbers) < self.least:
                raise ValueError(
                    f"group {name!r} has {len(numbers)} {what} and needs {self.least}: give "
                    f"{self.least - len(numbers)} more, leave it out, or set least={len(numbers)}"
                )
            count = self.limit or len(numbers)
            if self.seed:
                # By the group's name, so that another group changes nothing here.
                seeds = (self.seed, *name.encode())
                numbers = np.random.default_rng(seeds).permutation(numbers).tolist()
            chosen += numbers[:count]
        return [things[number] for number in sorted(chosen)]


def several(groups: int) -> str:
    """A sentence on looking at many groups at once (Bonferroni 1936).

    >>> several(9)
    '9 groups at 95% each: that one of them stands apart by chance alone has probability 0.37'
    """
    chance = 1 - math.pow(0.95, groups)
    return (
        f"{groups} group{'s' * (groups > 1)} at 95% each: that one of them stands apart by chance "
        f"alone has probability {chance:.2f}"
    )
