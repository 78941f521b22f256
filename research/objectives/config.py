"""What the section `config.objective` may hold."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ObjectiveConfig:
    """The settings of one objective: a subclass has the fields of its own and no others.

    In a config file the section is flat: it has the fields of all objectives, and
    `research.objectives.choose.own_settings` keeps those of the one that is named. `name` is no
    argument, because each subclass belongs to one row of the table.
    """

    name: str = field(default="", init=False)


@dataclass(frozen=True)
class TokenLossConfig(ObjectiveConfig):
    """Settings of every loss over tokens of a vocabulary.

    label_smoothing  share of the target's probability that goes to all tokens alike
                     (arXiv:1512.00567, section 7)
    z_loss           weight of log(Z)^2, which keeps the normaliser of the softmax near 1
                     (arXiv:2204.02311, section 5)
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        refuse_smoothing(self.label_smoothing)
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"objective.z_loss={self.z_loss} must be a number of at least 0")


def refuse_smoothing(label_smoothing: float) -> None:
    """ValueError for a share of smoothing outside [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"objective.label_smoothing={label_smoothing} must lie in [0, 1)")


def refuse_share(share: float) -> None:
    """ValueError for a share of masked or corrupted tokens outside (0, 1)."""
    if not 0 < share < 1:
        raise ValueError(f"objective.share={share} must lie in (0, 1)")
