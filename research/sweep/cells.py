"""A cell: one run of a sweep, known by a hash of everything that its numbers come from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from research.data.documents import digest
from research.experiment.config import Experiment
from research.files import flatten
from research.run.resolve import from_config
from research.run.start import open_data
from research.sweep.design import Sweep, set_field
from research.training.flops import train_flops_per_token

KEY_DIGITS = 16


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    inputs    hexadecimal digest of config, data and tokenizer
    key       that of the inputs and the code; the name of its folder
    levels    level by factor
    settings  the config fields in which it differs from the sweep's config, by path
    config    the resolved values of its config.json; {} where it cannot be resolved
    prints    digests of "code", "data" and "tokenizer"
    flops     FLOPs of its training steps, of the model alone; None where epochs set their number
    refused   why it cannot be run, "" where it can
    """

    inputs: str
    key: str
    levels: Mapping[str, str]
    seed: int
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    prints: Mapping[str, str]
    flops: float | None = None
    refused: str = ""


@dataclass
class Resolver:
    """Makes the cells of a sweep from its config. Data are opened once for all cells that share
    them, which also builds what is cached of them before several processes ask for it."""

    config: ConfigDict
    sweep: Sweep
    code: str
    _opened: dict[str, dict[str, str]] = field(default_factory=dict)

    def cell(self, levels: Mapping[str, str], seed: int) -> Cell:
        """The cell of a point and a seed. A combination that no run could have comes back with the
        reason in `refused`; ValueError for a field that the config does not have."""
        config = self.config.copy_and_resolve_references()
        self.sweep.change(config, levels)
        set_field(config, "train.seed", seed)
        settings = _changed(self.config, config)
        try:
            experiment = from_config(config)
            prints = self._prints(experiment) | {"code": self.code}
        except ValueError as error:
            reason = str(error).splitlines()[0]
            fields = json.dumps(config.to_dict(), sort_keys=True, default=str)
            inputs, key = self._keys(fields)
            code = {"code": self.code}
            return Cell(inputs, key, levels, seed, settings, {}, code, None, reason)
        values = experiment.to_json()
        fields = json.dumps(values, sort_keys=True)
        inputs, key = self._keys(fields, prints["data"], prints["tokenizer"])
        return Cell(inputs, key, levels, seed, settings, values, prints, train_flops(experiment))

    def _keys(self, *inputs: str) -> tuple[str, str]:
        digest_of_inputs = digest(*inputs, "")[:KEY_DIGITS]
        return digest_of_inputs, digest(digest_of_inputs, self.code)[:KEY_DIGITS]

    def _prints(self, experiment: Experiment) -> dict[str, str]:
        """Digests of data and tokenizer."""
        model = experiment.model
        data, objective = experiment.to_json()["data"], experiment.objective.name
        asked = json.dumps([data, experiment.init, objective, model.vocab_size, model.labels])
        if asked not in self._opened:
            corpus = open_data(experiment)
            self._opened[asked] = {
                "data": corpus.provenance["fingerprint"],
                "tokenizer": corpus.tokenizer.fingerprint,
            }
        return self._opened[asked]


def train_flops(experiment: Experiment) -> float | None:
    """FLOPs of all training steps, as `research.training.flops` counts a dense model's; None where
    the number of steps or rows is not known before the run."""
    data, train = experiment.data, experiment.train
    if train.epochs or not data.batch_size:
        return None
    tokens = train.steps * data.batch_size * data.sequence_length
    return tokens * train_flops_per_token(experiment.model, data.sequence_length)


def tokens_of_step(config: Mapping[str, Any]) -> int:
    """The tokens of a training step of a resolved config; 0 where they are not known before the
    run."""
    return config["data"]["batch_size"] * config["data"]["sequence_length"]


def refuse_rungs(config: Mapping[str, Any], rungs: Sequence[int]) -> None:
    """ValueError for a resolved config that is not evaluated at each of `rungs`, numbers of
    training tokens, before its end."""
    train, each = config["train"], tokens_of_step(config)
    if not each or train["epochs"]:
        raise ValueError("halving wants data.batch_size and train.steps; set them, not epochs")
    every = each * train["eval_every"]
    for rung in rungs:
        if not every or rung % every or rung >= each * train["steps"]:
            raise ValueError(
                f"a rung of {rung:,} tokens is no evaluation in mid-run: they are every {every:,} "
                f"tokens, of {each * train['steps']:,}; set train.eval_every or the rungs"
            )


def _changed(before: ConfigDict, after: ConfigDict) -> dict[str, Any]:
    """The fields of `after` with another value than in `before`, by path."""
    old, new = flatten(before.to_dict()), flatten(after.to_dict())
    return {path: value for path, value in new.items() if path not in old or old[path] != value}
