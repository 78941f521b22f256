"""Rollouts: texts that the model samples for prompts, with their rewards and advantages, as windows
for objectives on them (`research.objectives.written`).

Letters: P prompts, G texts of a prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from research.data.conversations import texts_of
from research.data.prompts import answer_ends, record_of
from research.data.tokenizers import Tokenizer
from research.infer.decode import Generation
from research.infer.prompts import Prompt
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.objectives.advantages import ADVANTAGES, compares, constant
from research.posttrain.rewards import Rewards
from research.posttrain.shared_rewards import shared_rewards
from research.tree import Tree

Window = dict[str, np.ndarray]


class Engine(Protocol):
    """What continues prompts with the parameters it is given, such as
    `research.infer.decode.generate`.

    Laws: one continuation for each prompt, in order, drawn from softmax(logits / temperature), with
    each token's log-probability in it where `config.scored` is "sampled"; the same arguments give
    the same bits; equal prompts get different random numbers.
    """

    def __call__(
        self,
        model: Model,
        params: Tree,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        config: SamplingConfig,
    ) -> list[Generation]: ...


@dataclass(frozen=True)
class Text:
    """A sampled text: its prompt's tokens, what followed, the sum of its rewards and each of them
    (NaN: none), and its advantage, which is the reward where texts are not compared."""

    prompt: list[int]
    written: Generation
    reward: float
    rewards: Mapping[str, float]
    advantage: float


@dataclass(frozen=True)
class Rollouts:
    """The texts of some prompts, those of a prompt together. `windows` are [P * G], for
    `Written.example`; `values` are means for the log, see `measures`."""

    texts: list[Text]
    windows: list[Window]
    values: dict[str, float]


def sample_seed(seed: int, number: int) -> int:
    """The seed of sampling `number` of a run with this seed. The texts of one sampling differ by
    prompt and by their number under it, so a text depends on (seed, number, prompt, sample)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def roll_out(
    engine: Engine,
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    prompts: Sequence[Window],
    rewards: Rewards,
    *,
    samples: int,
    advantage: str,
    length: int,
    config: SamplingConfig,
) -> Rollouts:
    """`samples` texts for each of `prompts`, windows of `research.data.prompts.Prompts`, rewarded,
    in windows of `length` tokens. ValueError where a reward cannot be computed.

    The processes of a job call it together, and each gets all texts: the rows that are sampled are
    split over the mesh's devices as those of a batch, rewards over the processes."""
    ids = [prompt["prompt"].tolist() for prompt in prompts for _ in range(samples)]
    records = [record_of(prompt) for prompt in prompts]
    config = replace(config, stop_ids=(*config.stop_ids, *answer_ends(tokenizer, records)))
    generations = engine(model, params, tokenizer, ids, config)
    of_texts = [records[i // samples] for i in range(len(generations))]
    answered = [
        (shown_prompt(of), one.text, of) for of, one in zip(of_texts, generations, strict=True)
    ]
    scored = shared_rewards(rewards, answered)
    rewards_PG = np.array([total for total, _ in scored], np.float64).reshape(-1, samples)
    # Without a comparison the rewards themselves.
    advantages_PG = ADVANTAGES[advantage or "gae"](rewards_PG)
    texts = [
        Text(prompt, one, total, parts, float(better))
        for prompt, one, (total, parts), better in zip(
            ids, generations, scored, advantages_PG.ravel()
        )
    ]
    windows = []
    for first in range(0, len(texts), samples):
        group = texts[first : first + samples]
        scored_tokens = sum(len(t.written.token_ids) for t in group if not math.isnan(t.reward))
        windows += [window(text, scored_tokens, length) for text in group]
    values = measures(texts, rewards_PG)
    if not compares(advantage):
        del values["constant_groups"]  # they teach as others do
    return Rollouts(texts, windows, values)


def window(text: Text, group_tokens: int, length: int) -> Window:
    """The fields of a window of `length` tokens that `Written` reads, with the text at its start.
    Without a reward no token counts."""
    tokens, segments, positions, assistant = np.zeros((4, length), np.int32)
    logprobs, advantages = np.zeros((2, length), np.float32)
    start, stop = len(text.prompt), len(text.prompt) + len(text.written.token_ids)
    tokens[:stop] = [*text.prompt, *text.written.token_ids]
    segments[:stop], positions[:stop] = 1, np.arange(stop)
    assistant[start:stop] = not math.isnan(text.reward)
    logprobs[start:stop] = text.written.logprobs
    advantages[start:stop] = text.advantage
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "assistant": assistant,
        "logprobs": logprobs,
        "advantages": advantages,
        "group_tokens": np.full(length, group_tokens, np.int32),
    }


def measures(texts: Sequence[Text], rewards_PG: np.ndarray) -> dict[str, float]:
    """What is logged of some texts: the mean "reward" and, of several, each as "reward_NAME";
    "length" in tokens; "truncated", the share that ended at the limit of tokens; "constant_groups",
    the share of prompts whose texts all have one reward; "unrewarded", the number without one."""
    values = {"reward": _mean([text.reward for text in texts])}
    names = list(texts[0].rewards)
    if len(names) > 1:
        values |= {f"reward_{name}": _mean([t.rewards[name] for t in texts]) for name in names}
    return values | {
        "length": float(np.mean([len(text.written.token_ids) for text in texts])),
        "truncated": float(np.mean([text.written.finish == "length" for text in texts])),
        "constant_groups": float(np.mean(constant(rewards_PG))),
        "unrewarded": float(np.sum(np.isnan(rewards_PG))),
    }


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are there; 0 if none is."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else 0.0


def shown_prompt(record: Mapping[str, Any]) -> str:
    """The prompt as rewards read it: a text, or the content of the last message."""
    prompt = record["prompt"]
    return prompt if isinstance(prompt, str) else "".join(texts_of(prompt[-1]))
