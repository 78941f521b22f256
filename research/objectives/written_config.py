"""The settings of objectives that learn from texts which the model has written itself."""

import math
from dataclasses import dataclass

from research.objectives.config import ObjectiveConfig

# "batch": texts side by side to the end of the longest, `research.infer.decode`. "pages": the
# server's engine, which reads a prompt once for all of its samples, `research.serve.batch`.
ENGINES = ("batch", "pages")


@dataclass(frozen=True)
class WrittenConfig(ObjectiveConfig):
    """How texts are sampled and rewarded.

    samples        texts of each prompt; the rows of a batch are prompts times samples
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

    samples: int = 8
    max_tokens: int = 64
    temperature: float = 1.0
    rewards: str = "exact_match"
    updates: int = 1
    staleness: int = 0
    logprob_limit: float = 1e-4
    engine: str = "batch"

    def __post_init__(self):
        if self.engine not in ENGINES:
            raise ValueError(
                f"objective.engine={self.engine!r}; choose one of {', '.join(ENGINES)}"
            )
        least_of = {"samples": 1, "max_tokens": 1, "updates": 1, "staleness": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"objective.{name}={getattr(self, name)} must be {least} or more")
        refuse_negative(self, "logprob_limit")
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
        """The row of `ADVANTAGES` by which the texts of a prompt are compared, "" for none."""
        return ""


def refuse_negative(config: ObjectiveConfig, *names: str) -> None:
    """ValueError for the first of these settings that is set and no number of at least 0."""
    for name in names:
        value = getattr(config, name)
        # Written so that NaN, which compares with nothing, is refused too.
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"objective.{name}={value} must be a number of at least 0")
