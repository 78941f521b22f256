"""The settings of reinforcement learning on the model's own texts."""

from dataclasses import dataclass, field

from research.objectives.advantages import ADVANTAGES
from research.objectives.policy_losses import AVERAGES, LOSSES, Clip
from research.objectives.written_config import WrittenConfig, refuse_negative


@dataclass(frozen=True)
class PolicyConfig(WrittenConfig):
    """How texts are sampled and rewarded, see `WrittenConfig`, and what is trained on them. One
    text of a prompt is enough for the advantage "gae", the others compare texts of a prompt.

    policy_loss    a row of `LOSSES`, which gives the three below that are left at "" or None
    advantage      a row of `ADVANTAGES`; average: a row of `AVERAGES`
    clip_low, clip_high  bounds of the ratio, see `Clip`; clip_most: 0 for none
    discount, gae_decay  gamma and lambda of `research.objectives.gae`, value_weight: the weight of
                   the value head's loss; of the advantage "gae" alone
    kl_weight      weight of the divergence from the reference, the model before the first step
    """

    name: str = field(default="policy", init=False)
    policy_loss: str = "dapo"
    advantage: str = ""
    average: str = ""
    clip_low: float | None = None
    clip_high: float | None = None
    clip_most: float = 0.0
    discount: float = 1.0
    gae_decay: float = 0.95
    value_weight: float = 0.1
    kl_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name, table in (
            ("policy_loss", LOSSES),
            ("advantage", ["", *ADVANTAGES]),
            ("average", ["", *AVERAGES]),
        ):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"objective.{name}={getattr(self, name)!r}; choose one of {', '.join(table)}"
                )
        if self.samples < 2 and not self.has_values:
            raise ValueError(
                f"objective.samples={self.samples}: a text is compared with others of its prompt; "
                "set config.objective.samples to 2 or more"
            )
        for name in ("discount", "gae_decay", "value_weight"):
            value, default = getattr(self, name), getattr(PolicyConfig, name)
            if value != default and not self.has_values:
                raise ValueError(
                    f"objective.{name}={value} is of the advantage 'gae', and objective.policy_loss"
                    f"={self.policy_loss!r} has {self.own_advantage!r}; leave it at {default}, or "
                    "set config.objective.advantage=gae"
                )
            if name != "value_weight" and not 0 <= value <= 1:
                raise ValueError(f"objective.{name}={value} must be in 0..1")
        refuse_negative(self, "clip_low", "clip_high", "clip_most", "kl_weight", "value_weight")

    @property
    def own_advantage(self) -> str:
        """The row of `ADVANTAGES`: the loss's own where none is set."""
        return self.advantage or LOSSES[self.policy_loss].advantage

    @property
    def has_values(self) -> bool:
        """Whether a value head is trained."""
        return self.own_advantage == "gae"

    @property
    def clip(self) -> Clip:
        """The bounds of the ratio: the loss's own where none are set."""
        own = LOSSES[self.policy_loss].clip
        low = own.low if self.clip_low is None else self.clip_low
        high = own.high if self.clip_high is None else self.clip_high
        return Clip(low, high, self.clip_most)
