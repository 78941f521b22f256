"""The settings of reinforcement learning on the model's own texts."""

import math
from dataclasses import dataclass, field

from research.objectives.advantages import ADVANTAGES
from research.objectives.config import ObjectiveConfig
from research.objectives.policy_losses import AVERAGES, LOSSES, Clip

# "batch": texts side by side to the end of the longest, `research.infer.decode`. "pages": the
# server's engine, which reads a prompt once for all of its samples, `research.serve.batch`.
ENGINES = ("batch", "pages")


@dataclass(frozen=True)
class PolicyConfig(ObjectiveConfig):
    """How texts are sampled and rewarded, and what is trained on them.

    policy_loss    a row of `LOSSES`, which gives the three below that are left at "" or None
    advantage      a row of `ADVANTAGES`; average: a row of `AVERAGES`
    clip_low, clip_high  bounds of the ratio, see `Clip`; clip_most: 0 for none
    discount, gae_decay  gamma and lambda of `research.objectives.gae`, value_weight: the weight of
                   the value head's loss; of the advantage "gae" alone
    kl_weight      weight of the divergence from the reference, the model before the first step
    samples        texts of each prompt; the rows of a batch are prompts times samples. One is
                   enough for the advantage "gae", the others compare texts of a prompt
    max_tokens     most tokens of a text
    temperature    divides the logits that texts are drawn from, and those of the loss. Nothing else
                   shapes the draw: with top-k or top-p the texts would be of another distribution
                   than the one that is trained
    rewards        "NAME:WEIGHT,...", see `research.posttrain.rewards`
    updates        steps on the texts that are sampled at once, each on its own part of them
    staleness      how many samplings old the weights that wrote a step's texts are; 0 is
                   on-policy, and the texts of the first samplings are all of the first weights
    logprob_limit  largest difference of a token's log-probability in sampling and in training, in
                   nats; a run that has a larger one stops. bfloat16 needs a higher limit
    engine         a row of ENGINES: what samples
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
    samples: int = 8
    max_tokens: int = 64
    temperature: float = 1.0
    rewards: str = "exact_match"
    updates: int = 1
    staleness: int = 0
    logprob_limit: float = 1e-4
    engine: str = "batch"

    def __post_init__(self):
        for name, table in (
            ("policy_loss", LOSSES),
            ("advantage", ["", *ADVANTAGES]),
            ("average", ["", *AVERAGES]),
            ("engine", ENGINES),
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
        least_of = {"samples": 1, "max_tokens": 1, "updates": 1, "staleness": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"objective.{name}={getattr(self, name)} must be {least} or more")
        numbers = ("clip_low", "clip_high", "clip_most", "kl_weight", "logprob_limit")
        for name in (*numbers, "value_weight"):
            value = getattr(self, name)
            # Written so that NaN, which compares with nothing, is refused too.
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"objective.{name}={value} must be a number of at least 0")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"objective.temperature={self.temperature} must be above 0: the likeliest tokens "
                "alone give every text of a prompt alike; set config.objective.temperature"
            )

    @property
    def rows_of_window(self) -> int:
        """The texts that are sampled for a prompt."""
        return self.samples

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
