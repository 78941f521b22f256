"""The sampling of a run that learns from its own texts: its prompts, rewards and engine, and the
check that sampling and training agree on the texts' log-probabilities."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp

from research import command
from research.data.chat import endless_turns
from research.data.mixture import Mixture
from research.data.prompts import has_messages, record_of
from research.data.tokenizers import Tokenizer
from research.infer.decode import generate
from research.infer.sampling import SamplingConfig
from research.models.model import Model
from research.objectives.advantages import compares
from research.objectives.next_token import batch_scores
from research.objectives.written import Written
from research.objectives.written_config import WrittenConfig
from research.parallel.mesh import place_batch
from research.posttrain.rewards import Rewards, make_rewards
from research.posttrain.rollouts import Engine, roll_out, sample_seed
from research.run.program import Program
from research.run.rollout_feed import RolloutFeed, Sampling, rows_of, sampling_of
from research.serve import batch
from research.training.state import TrainState
from research.tree import Tree
from research.weights.rules import attach, drops

ENGINES: Mapping[str, Engine] = {"batch": generate, "pages": batch.write}


@dataclass(frozen=True)
class Sampler:
    """Samples texts for the prompts of a run: `sampler(state, number)`.

    Sampling `number` continues the next prompts of the mixture, in the weights of the state, on the
    mesh of the run: no weight is copied but into the layout of decoding.
    """

    program: Program
    config: WrittenConfig
    tokenizer: Tokenizer
    prompts: Mixture
    rewards: Rewards
    engine: Engine = generate

    def __call__(self, state: TrainState, number: int) -> Sampling:
        """The texts of sampling `number`, all of them in every process. `command.Stop` where a
        token's log-probability differs from that of training by more than the limit."""
        e, c = self.program.experiment, self.config
        count = self.program.batch_size * c.updates // c.samples
        rollouts = roll_out(
            self.engine,
            self.program.model,
            state.params,
            self.tokenizer,
            [self.prompts[number * count + i] for i in range(count)],
            self.rewards,
            samples=c.samples,
            advantage=c.own_advantage,
            length=self.program.objective.window_length(e.data.sequence_length),
            config=SamplingConfig(
                temperature=c.temperature,
                max_tokens=c.max_tokens,
                seed=sample_seed(e.train.seed, number),
                bos=False,
                # At temperature 1 these are the model's own, and one program serves both.
                scored="sampled" if c.temperature != 1 else "model",
            ),
        )
        sampling = sampling_of(rollouts, self.tokenizer.decode, compared=compares(c.own_advantage))
        difference = self.difference(state, sampling)
        # Written so that NaN stops it too.
        if not difference <= c.logprob_limit:
            raise command.Stop(
                command.BUG,
                f"sampling {number}: a token's log-probability in sampling and in training differ "
                f"by {difference:.3g} nats, over config.objective.logprob_limit={c.logprob_limit:g}"
                f"; {_remedy(e.precision.compute)}",
            )
        sampling.values["rollout_logprob_difference"] = difference
        return sampling

    def difference(self, state: TrainState, sampling: Sampling) -> float:
        """The largest difference of the log-probability of a token, in nats."""
        program, largest = self.program, 0.0
        for first in range(0, len(sampling.windows), program.batch_size):
            windows = sampling.windows[first : first + program.batch_size]
            rows = rows_of(program.objective, windows, program.part)
            placed = place_batch(rows, program.mesh, program.rules, program.batch_size)
            one = self._difference(state.trainable, state.held["base"], placed)
            largest = max(largest, float(one)) if one == one else float(one)
        return largest

    @cached_property
    def _difference(self) -> Callable[[Tree, Tree, Mapping[str, jax.Array]], jax.Array]:
        return jax.jit(partial(_largest, self.program.model, self.config.temperature))


def _remedy(compute: str) -> str:
    if compute != "float32":
        return "set config.precision.compute=float32, or a higher limit"
    # Of half a million tokens of a model with states of 100 one was 2e-4 apart, most 1e-6.
    return "a single token is that far by float32's rounding at times; set a higher limit"


def _largest(
    model: Model, temperature: float, trainable: Tree, base: Tree, batch: dict[str, jax.Array]
) -> jax.Array:
    scores, _ = batch_scores(model, attach(base, trainable), batch, temperature=temperature)
    apart_BT = jnp.abs(scores.logp - batch["sampled"])
    return jnp.max(jnp.where(batch["weights"] > 0, apart_BT, 0.0))


def rollout_feed(program: Program, tokenizer: Tokenizer, prompts: Mixture) -> RolloutFeed:
    """The feed of a run that learns from its own texts. ValueError for settings that do not fit."""
    e, c, objective = program.experiment, program.experiment.objective, program.objective
    if not isinstance(c, WrittenConfig) or not isinstance(objective, Written):
        raise ValueError(f"objective {objective.name} does not sample texts")
    if program.batch_size % c.samples:
        raise ValueError(
            f"a batch of {program.batch_size} texts is no whole number of prompts with "
            f"objective.samples={c.samples}; set config.data.batch_size to a multiple"
        )
    if e.model.dropout or drops(program.baseless_state.trainable):
        raise ValueError(
            "dropout makes log-probabilities in training others than in sampling; "
            "set config.model.dropout and config.lora.dropout to 0"
        )
    longest, path = max(part.longest() for part in prompts.parts)  # type: ignore[attr-defined]
    room = e.data.sequence_length + 1 - c.max_tokens
    if longest > room:
        raise ValueError(
            f"the prompt of {path} has {longest} tokens, and data.sequence_length="
            f"{e.data.sequence_length} leaves {room} beside objective.max_tokens={c.max_tokens}; "
            "raise it, or leave such prompts out"
        )
    if any(has_messages(record_of(part[0])) for part in prompts.parts):
        if endless := endless_turns(tokenizer):
            logging.warning(endless)
    rewards = make_rewards(c.rewards)
    rewards.refuse_lacking(record_of(part[i]) for part in prompts.parts for i in range(len(part)))
    rewards.open()
    sampler = Sampler(program, c, tokenizer, prompts, rewards, ENGINES[c.engine])
    size, part = program.batch_size, program.part
    return RolloutFeed(sampler, objective, size, c.updates, c.staleness, part)
