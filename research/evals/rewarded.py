"""The reward of what a model writes for held-out prompts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from research.data.loader import Window
from research.data.prompts import answer_ends, record_of
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.infer.sampling import SamplingConfig
from research.objectives.written import Written
from research.posttrain.rewards import make_rewards
from research.posttrain.rollouts import shown_prompt
from research.posttrain.shared_rewards import shared_rewards
from research.serve.batch import write


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
    main = "reward"

    @classmethod
    def make(cls, config: RewardedConfig, data: RunData) -> "Rewarded":
        """Of a run's held-out prompts. ValueError for a run whose data are no prompts."""
        objective = data.run_objective()
        if not isinstance(objective, Written):
            raise ValueError(
                f"the data of objective {objective.name} are no prompts with answers; "
                "set config.objective.name to policy or on_policy_distillation"
            )
        return cls(
            data.windows,
            config.rewards or objective.rewards,
            config.max_tokens or objective.max_tokens,
            config.temperature,
            data.batch_size,
            config.batches,
        )

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a prompt: its rewards, where it has one, and what else is counted over texts."""
        if opened.tokenizer is None:
            raise ValueError("the model has no tokenizer, and rewards read text")
        rewards = make_rewards(self.rewards)
        most = self.batches * self.batch_size or len(self.windows)
        prompts = [self.windows[i] for i in range(min(most, len(self.windows)))]
        records = [record_of(prompt) for prompt in prompts]
        config = SamplingConfig(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            bos=False,
            stop_ids=answer_ends(opened.tokenizer, records),
        )
        texts = write(
            opened.model,
            opened.params,
            opened.tokenizer,
            [prompt["prompt"].tolist() for prompt in prompts],
            config,
        )
        answered = [(shown_prompt(of), text.text, of) for of, text in zip(records, texts)]
        for number, (total, parts) in enumerate(shared_rewards(rewards, answered)):
            text, asked = texts[number], answered[number][0]
            numbers = {"reward": total}
            if len(parts) > 1:
                numbers |= {f"reward_{name}": value for name, value in parts.items()}
            numbers |= {
                "length": float(len(text.token_ids)),
                "truncated": float(text.finish == "length"),
            }
            totals: Totals = {
                name: (value, 1.0) for name, value in numbers.items() if not math.isnan(value)
            }
            yield Item(str(number), totals, {"prompt": asked, "written": text.text})
