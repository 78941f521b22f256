"""The reward of what a model writes for held-out prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from research.data.loader import Window
from research.data.prompts import record_of
from research.evals.evaluation import Evaluation, Opened, RunData, Totals
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.objectives.policy import Policy
from research.posttrain.rewards import make_rewards
from research.posttrain.rollouts import shown_prompt


@dataclass(frozen=True)
class RewardedConfig:
    """rewards      as config.objective.rewards, "" for those
    max_tokens   most tokens of a text, 0 for those of the run
    temperature  0 takes the likeliest token
    batches      how many batches of prompts are read, 0 for all
    """

    rewards: str = ""
    max_tokens: int = 0
    temperature: float = 0.0
    batches: int = 0

    def __post_init__(self):
        SamplingConfig(temperature=self.temperature, max_tokens=self.max_tokens or 1)
        if self.batches < 0:
            raise ValueError(f"batches={self.batches} of the prompts must not be negative")
        if self.rewards:
            make_rewards(self.rewards)


@dataclass(frozen=True)
class Rewarded(Evaluation):
    """One text for each held-out prompt, by default of the likeliest tokens.

    reward         the mean of the weighted sum, over texts that have one; of several rewards each
                   is reward_NAME
    length         tokens of a text
    truncated      share of texts that ended at the limit of tokens
    """

    windows: Sequence[Window]
    rewards: str
    max_tokens: int
    temperature: float = 0.0
    batch_size: int = 1
    batches: int = 0

    config = RewardedConfig

    @classmethod
    def make(cls, config: RewardedConfig, data: RunData) -> "Rewarded":
        """Of a run's held-out prompts. ValueError for a run whose data are no prompts."""
        objective = data.objective
        if not isinstance(objective, Policy):
            raise ValueError(
                f"the data of objective {objective.name} are no prompts with answers; "
                "set config.objective.name='policy'"
            )
        return cls(
            data.windows,
            config.rewards or objective.rewards,
            config.max_tokens or objective.max_tokens,
            config.temperature,
            data.batch_size,
            config.batches,
        )

    def run(self, opened: Opened) -> Totals:
        """Sums of rewards over the texts that have one, and of what else is counted over texts."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer, and rewards read text")
        rewards = make_rewards(self.rewards)
        most = self.batches * self.batch_size or len(self.windows)
        prompts = [self.windows[i] for i in range(min(most, len(self.windows)))]
        config = SamplingConfig(temperature=self.temperature, max_tokens=self.max_tokens, bos=False)
        texts = generate(
            opened.model,
            opened.params,
            opened.tokenizer,
            [prompt["prompt"].tolist() for prompt in prompts],
            config,
        )
        totals: Totals = {}

        def add(name: str, value: float) -> None:
            if not math.isnan(value):
                total, count = totals.get(name, (0.0, 0.0))
                totals[name] = (total + value, count + 1.0)

        for prompt, text in zip(prompts, texts):
            record = record_of(prompt)
            total, parts = rewards(shown_prompt(record), text.text, record)
            add("reward", total)
            for name, value in parts.items() if len(parts) > 1 else ():
                add(f"reward_{name}", value)
            add("length", float(len(text.token_ids)))
            add("truncated", float(text.finish == "length"))
        return totals
