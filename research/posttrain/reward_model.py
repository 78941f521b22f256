"""A reward model as a reward: its score of a prompt with its answer."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from research.data.chat import ChatEncoder
from research.data.chat_sandbox import ChatRefused
from research.infer.scores import score_texts
from research.interop.load import load
from research.interop.loaded import Loaded
from research.parallel.mesh import make_mesh


@dataclass(frozen=True)
class ModelReward:
    """The score of the reward model at `source`: the workdir of a run with objective `reward`, or a
    checkpoint of any format. It reads texts with its own tokenizer and chat template, lies on the
    first device of the process, and is opened at the first use, once for all of a process."""

    source: str

    def __call__(self, prompt: str, completion: str, record: Mapping[str, Any]) -> float | None:
        """`many` for one text."""
        return self.many([(prompt, completion, record)])[0]

    def many(self, texts: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[float | None]:
        """The score of each text, given as for a reward; None for one that is longer than the
        texts that the model was trained on. ValueError as `open`, and for messages that the
        model's chat template rejects."""
        with jax.set_mesh(_first_device()):
            loaded, encoder = _opened(self.source)
            encoded = encoder.encode_batch([_messages(*text) for text in texts])
            for one in encoded:
                if isinstance(one, ChatRefused):
                    raise ValueError(f"the chat template of {self.source} rejects a text: {one}")
            ids = [one[0] for one in encoded]
            fits = [index for index, one in enumerate(ids) if len(one) <= loaded.window]
            scores = score_texts(loaded.model, loaded.params, [ids[index] for index in fits])
        found: list[float | None] = [None] * len(ids)
        for index, score in zip(fits, scores.tolist()):
            found[index] = score
        return found

    def open(self) -> None:
        """Opens the model. ValueError where there is none, and for one that gives no score."""
        with jax.set_mesh(_first_device()):
            _opened(self.source)


@functools.cache
def _opened(source: str) -> tuple[Loaded, ChatEncoder]:
    loaded = load(source, mesh=_first_device())
    if not loaded.model.config.scores_texts:
        raise ValueError(
            f"objective.rewards: {source} is no reward model, which has model.labels=1; train one "
            "with --config=configs/posttrain.py:task=reward"
        )
    if loaded.tokenizer is None:
        raise ValueError(f"objective.rewards: {source} has no tokenizer to read texts with")
    return loaded, ChatEncoder(loaded.tokenizer)


@functools.cache
def _first_device() -> jax.sharding.Mesh:
    # A mesh of its own: a run's, which is entered when rewards are given, may be of several.
    return make_mesh("", jax.local_devices()[:1])


def _messages(prompt: str, completion: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    asked = record.get("prompt", prompt)
    before = asked if isinstance(asked, list) else [{"role": "user", "content": prompt}]
    return [*before, {"role": "assistant", "content": completion}]
