"""The configuration of a run: one frozen dataclass for each section, from and to a `config.json`.

A config file starts from `base_config()`, which has all fields with their defaults, and sets the
ones that differ. A misspelt field is refused with the nearest name. A field that would change
nothing in the run is refused too.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from research.data.config import DataConfig
from research.data.layouts import LAYOUTS
from research.experiment.fields import build, defaults, may_change, placeholders
from research.files import flatten
from research.models.config import Execution, ModelConfig
from research.models.config_checks import reset_unused
from research.objectives.choose import flat_defaults, objective_class, own_settings
from research.objectives.config import ObjectiveConfig
from research.parallel.axes import merge_rules
from research.parallel.mesh import parse_mesh
from research.precision import Precision
from research.training.checkpoint import CheckpointConfig
from research.training.optimizer import OptimizerConfig
from research.training.skipping import SkipConfig
from research.training.watchdog import WatchdogConfig
from research.tuning.lora_specs import LoraConfig
from research.tuning.method import QuantizeConfig, TuneConfig, refuse_unused

# Metadata of fields that a resumed run may change: they say how long, how often or on which devices
# a run computes, and not what. On a section it holds for all fields of the section.
RESUME = {"resume": True}


@dataclass(frozen=True)
class TrainConfig:
    """How long a run is, and how often it reports. Intervals are in steps; 0 is never.

    epochs         how often to read the training data, a fraction allowed; sets `steps` once the
                   data are open. 0 leaves `steps` as it is
    accumulate     number of micro-batches that a step is cut into, to save memory; it does not
                   change the loss, except that experts are balanced over each micro-batch
    eval_batches   number of held-out batches of an evaluation in mid-run; 0 is all of them, which
                   the last evaluation takes in any case
    sample_prompt  text that the model continues for `sample_tokens` tokens, every `sample_every`
                   steps and at the end
    """

    steps: int = field(default=1000, metadata=RESUME)
    epochs: float = field(default=0.0, metadata=RESUME)
    seed: int = 0
    accumulate: int = 1
    log_every: int = field(default=10, metadata=RESUME)
    eval_every: int = field(default=0, metadata=RESUME)
    eval_batches: int = field(default=0, metadata=RESUME)
    sample_every: int = field(default=0, metadata=RESUME)
    sample_prompt: str = field(default="", metadata=RESUME)
    sample_tokens: int = field(default=128, metadata=RESUME)

    def __post_init__(self):
        for name in ("steps", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be positive")
        if not 0 <= self.epochs < math.inf:
            raise ValueError(f"train.epochs={self.epochs} must be a number of at least 0")
        for name in ("seed", "eval_every", "eval_batches", "sample_every", "sample_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class LoggingConfig:
    """Trackers that get the metrics in addition to the run directory."""

    wandb: bool = False


@dataclass(frozen=True)
class Experiment:
    """A whole run, with every field resolved.

    init   checkpoint to start from, as `research.interop.load.open_checkpoint` names it; "" starts
           from random parameters
    mesh   axes and sizes of the device mesh, such as "fsdp:4,tensor:2", see
           `research.parallel.mesh.parse_mesh`
    axes   changes to `research.parallel.axes.RULES`: mesh axes by logical axis
    evals  settings by name of the evaluations to make in addition to the held-out loss

    ValueError for sections that do not fit each other.
    """

    model: ModelConfig
    tune: TuneConfig
    lora: LoraConfig
    quantize: QuantizeConfig
    # How the layers run changes no result; see its docstring.
    execution: Execution = field(metadata=RESUME)
    precision: Precision
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    skip: SkipConfig
    checkpoint: CheckpointConfig = field(metadata=RESUME)
    logging: LoggingConfig = field(metadata=RESUME)
    watchdog: WatchdogConfig = field(metadata=RESUME)
    init: str = ""
    mesh: str = field(default="", metadata=RESUME)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict, metadata=RESUME)
    evals: dict[str, dict[str, Any]] = field(default_factory=dict, metadata=RESUME)

    def __post_init__(self):
        # The sections have checked their own fields. What follows needs more than one of them.
        parse_mesh(self.mesh)
        refuse_unused(self.tune, self.lora, self.quantize)
        merge_rules(self.axes)
        _refuse_misfits(self.objective.name, self.model)
        self._refuse_unused()
        length = self.data.sequence_length
        # Other kinds of positions are computed and have no last one.
        if self.model.position == "learned" and length > self.model.max_length:
            raise ValueError(
                f"data.sequence_length={length} is over the {self.model.max_length} learned "
                f"positions; set config.model.max_length to at least {length}"
            )

    def _refuse_unused(self) -> None:
        for section, name, default, of in _unused(self.model.experts, self.objective.name):
            value = getattr(getattr(self, section), name)
            if value != default:
                raise ValueError(
                    f"{section}.{name}={value!r} is for {of}, which this run is not; "
                    f"set config.{section}.{name} to {default!r}"
                )

    @property
    def changes_base(self) -> bool:
        """True if the start of the adapters changes the frozen weights (PiSSA, OLoRA, LoftQ), which
        then differ from those of `init` and must be saved."""
        return self.tune.method == "lora" and self.lora.start != "default"

    def to_json(self) -> dict[str, Any]:
        """The values of `config.json`: plain JSON, every field there.

        The section of the objective has the settings of all objectives, so that its shape is the
        same in every run; those of other objectives are at their defaults.
        """
        values = dataclasses.asdict(self)
        values["objective"] = flat_defaults() | values["objective"]
        # Tuples become lists, as they do in the file, so that both compare equal.
        return json.loads(json.dumps(values))


def _unused(experts: int, objective: str) -> list[tuple[str, str, Any, str]]:
    """(section, field, default, what the field is for) of each field that has no effect in a run
    because of what another section says."""
    unused: list[tuple[str, str, Any, str]] = []
    if experts:  # tokens go to experts by groups of their own
        unused.append(("execution", "feed_tokens", Execution().feed_tokens, "dense models"))
    else:
        unused.append(("execution", "experts", Execution().experts, "models with experts"))
    kind = objective_class(objective)
    if kind.reads != "texts":
        unused.append(("data", "packing", True, "objectives that read plain texts"))
    if not LAYOUTS[kind.reads].answers:
        unused.append(("data", "prompt_tokens", 0, "records of a prompt and answers"))
    # Labels have no logits of words.
    if kind.classifies or kind.scores_texts:
        head_tokens = Execution().head_tokens
        unused.append(("execution", "head_tokens", head_tokens, "objectives that predict tokens"))
    if not kind.classifies or kind.labels_over == "spans":
        unused.append(("data", "label_names", "", "data with classes"))
    if not kind.answers_chats:
        for name in ("chat_template", "template_variables"):
            unused.append(("data", name, getattr(DataConfig(), name), "the objective chat"))
    return unused


def _refuse_misfits(name: str, model: Any) -> None:
    """ValueError for a model of a kind that the objective does not train, or without its head."""
    objective, labels = objective_class(name), model.labels
    kind = f"{model.kind} of sound" if model.mels > 0 else model.kind
    if kind != objective.model_kind:
        raise ValueError(
            f"objective {name} is for a model of kind {objective.model_kind!r}, "
            f"this one is {kind!r}"
        )
    # One class is no choice, but a score; several classes are only for a classifier.
    if (labels > 1) != objective.classifies or (labels == 1) != objective.scores_texts:
        raise ValueError(
            f"model.labels={labels} under objective {name}: set config.model.labels to the "
            "number of classes for classification and token_classification, to 2 for "
            "question_answering, to 1 for reward, and to 0 otherwise"
        )
    if labels and model.labels_over != objective.labels_over:
        raise ValueError(
            f"model.labels_over={model.labels_over!r} under objective {name}; set "
            f"config.model.labels_over={objective.labels_over}"
        )


def base_config() -> ConfigDict:
    """All fields with their defaults, for a config file to change.

    Model fields are typed and None: `research.run.resolve` takes them from `model.preset`, or else
    from the checkpoint `init`.
    """
    sections = {
        name: defaults(kind)
        for name, kind in get_type_hints(Experiment).items()
        if dataclasses.is_dataclass(kind)
    }
    # A ConfigDict refuses fields that it lacks, which is what catches a misspelt flag.
    sections["model"] = {"preset": "", **placeholders(ModelConfig)}
    sections["objective"] = flat_defaults()
    return ConfigDict({**sections, "init": "", "mesh": "", "axes": {}, "evals": {}})


def make_experiment(values: Mapping[str, Any]) -> Experiment:
    """The experiment of plain values by section; what is absent is at its default.

        make_experiment({"objective": {"name": "masked_lm"}, "model": {"kind": "encoder"}})

    ValueError for an unknown field, a value of another type, or one that does not fit.
    """
    sections = {}
    flat = flat_defaults() | values.get("objective", {})
    settings = own_settings(flat)
    plain = {n: getattr(ModelConfig, n) for n in ("kind", "labels", "labels_over", "mels")}
    model = SimpleNamespace(**plain | values.get("model", {}))
    # Before the sections are built, because a model of the wrong kind explains more than the fields
    # that it lacks for the objective.
    _refuse_misfits(flat["name"], model)
    for name, kind in get_type_hints(Experiment).items():
        if name == "objective":
            kind = objective_class(flat["name"]).config
            sections[name] = build(kind, settings, "config.objective")
        elif dataclasses.is_dataclass(kind):
            sections[name] = build(kind, values.get(name, {}), f"config.{name}")
        elif name in values:
            sections[name] = values[name]
    # JSON has lists where `research.parallel.axes.RULES` has tuples.
    axes = {name: tuple(names) for name, names in values.get("axes", {}).items()}
    return Experiment(**{**sections, "axes": axes})


def from_json(values: Mapping[str, Any]) -> Experiment:
    """The experiment of a `config.json`, also of an older run, see `complete`."""
    return make_experiment(complete(values))


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `config.json`, possibly of an older version, with all fields of today.

    A field that the file lacks gets its default, which is how such a run was computed. A setting
    without effect gets its default too, because older versions accepted it and this one would
    refuse it. Fields that no longer exist are kept, and refused by `make_experiment`.
    """
    sections = {}
    for name, kind in get_type_hints(Experiment).items():
        if dataclasses.is_dataclass(kind):
            sections[name] = {**dataclasses.asdict(kind()), **values.get(name, {})}
    whole = {"init": "", "mesh": "", "axes": {}, "evals": {}, **values, **sections}
    model = dataclasses.asdict(ModelConfig())
    # Sections inside a section, which the merge above has taken whole.
    inner = {n: {**model[n], **whole["model"][n]} for n in ("rope_scaling", "image", "sound")}
    whole["model"] = reset_unused(ModelConfig, {**whole["model"], **inner})

    # The section "objective" has the settings of all objectives; only those of its own are in use.
    plain = {**flat_defaults(), **values.get("objective", {})}
    used = {f.name for f in dataclasses.fields(objective_class(plain["name"]).config)}
    unused = {name: value for name, value in flat_defaults().items() if name not in used}
    whole["objective"] = {**plain, **unused}
    for section, name, default, _ in _unused(whole["model"]["experts"], plain["name"]):
        whole[section] = {**whole[section], name: default}
    return whole


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Lines such as "data.batch_size: 16 -> 32", by path, for the fields that differ between two
    configs, values of `config.json`. An absent field is at its default."""
    before, after = (flatten(json.loads(json.dumps(complete(one)))) for one in (old, new))
    return {
        name: f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def refused_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The lines of `differences` for the fields that must not change on resume, see `RESUME`."""
    return [
        line for name, line in differences(old, new).items() if not may_change(Experiment, name)
    ]
