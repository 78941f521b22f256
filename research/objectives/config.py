"""The section `objective` of a config as dataclasses, and the checks that they share."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ObjectiveConfig:
    """The settings of one objective. Each objective has a subclass with its own fields.

    In a config file the section is flat, with the fields of all objectives, and
    `research.objectives.choose.own_settings` picks those of the objective that `name` gives.
    `name` is a constant of the subclass and cannot be passed to it.
    """

    # A field and not a class attribute, so that it is among the section's settings.
    name: str = field(default="", init=False)

    @property
    def rows_of_window(self) -> int:
        """Rows of a batch that one window of the data makes."""
        return 1


@dataclass(frozen=True)
class TokenLossConfig(ObjectiveConfig):
    """Settings of every objective that predicts tokens.

    label_smoothing  probability taken from the target and spread evenly over the vocabulary
                     (arXiv:1512.00567, section 7)
    z_loss           weight of log(Z)^2, which keeps the normaliser of the softmax near 1
                     (arXiv:2204.02311, section 5)
    """

    # With both at 0 the loss is the plain negative log-likelihood.
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        refuse_smoothing(self.label_smoothing)
        # Written so that NaN, which compares with nothing, is refused too.
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"objective.z_loss={self.z_loss} must be a number of at least 0")


def refuse_smoothing(label_smoothing: float) -> None:
    """ValueError for a label smoothing outside [0, 1); at 1 the target would not matter."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"objective.label_smoothing={label_smoothing} must lie in [0, 1)")


def refuse_share(share: float) -> None:
    """ValueError for a share of masked or corrupted tokens outside (0, 1): with 0 nothing is
    predicted, with 1 nothing is left to predict it from."""
    if not 0 < share < 1:
        raise ValueError(f"objective.share={share} must lie in (0, 1)")


def refuse_overlap(overlap: int) -> None:
    """ValueError for fewer than 0 tokens that neighbouring windows of a text share."""
    if overlap < 0:
        raise ValueError(f"objective.overlap={overlap} must not be negative")
