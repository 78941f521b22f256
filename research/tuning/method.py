"""The fine-tuning methods: what a run trains, and in what form it keeps the other parameters.

A method splits the model's specs in two: `trainable` parameters have gradients, optimizer state and
a place in checkpoints; `frozen` ones are read again from the checkpoint that the run starts from.
The model computes with `attach(frozen, trainable)`. A method is one row of `METHODS`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from research import tree
from research.models.adapters import (
    PLACEMENTS,
    bottleneck_specs,
    prefix_specs,
    prompt_specs,
)
from research.models.config import ModelConfig
from research.models.spec import initialize
from research.parallel.axes import AxisRules
from research.tuning.lora_specs import LoraConfig, lora_specs
from research.weights.formats import FORMATS
from research.weights.grouping import check_split
from research.weights.ia3 import ia3_specs
from research.weights.matrices import ALL_LINEAR, LINEAR
from research.weights.quantized import is_quantized
from research.weights.rules import is_leaf, quantize, quantize_specs


@dataclass(frozen=True)
class Method:
    """One method of fine-tuning.

    added      `added(specs, model, tune, lora)` returns the specs of the parameters that are added
               and trained while the model's own are frozen; None trains the model's own
    settings   the fields of TuneConfig that the method reads, beside `method`
    lora       True if it reads config.lora
    """

    added: Callable[[tree.Tree, ModelConfig, "TuneConfig", LoraConfig], tree.Tree] | None
    settings: tuple[str, ...] = ()
    lora: bool = False


# Lambdas bring the different arguments of the methods to one signature, so that no caller asks
# which method it has.
METHODS = {
    "full": Method(None),
    "lora": Method(
        lambda specs, model, tune, lora: lora_specs(specs, lora), settings=("also",), lora=True
    ),
    # Nothing is added: a projector between two frozen models, for example.
    "part": Method(lambda specs, model, tune, lora: {}, settings=("also",)),
    "ia3": Method(lambda specs, model, tune, lora: ia3_specs(specs), settings=("also",)),
    "adapter": Method(
        lambda specs, model, tune, lora: bottleneck_specs(model, tune.bottleneck, tune.placement),
        settings=("also", "bottleneck", "placement"),
    ),
    "prompt": Method(
        lambda specs, model, tune, lora: prompt_specs(model, tune.virtual_tokens),
        settings=("also", "virtual_tokens"),
    ),
    "prefix": Method(
        lambda specs, model, tune, lora: prefix_specs(model, tune.virtual_tokens),
        settings=("also", "virtual_tokens"),
    ),
}


@dataclass(frozen=True)
class TuneConfig:
    """The section config.tune: what is trained.

    method           full      all parameters
                     lora      low-rank adapters, see config.lora
                     part      the parameters that `also` names, and nothing else
                     ia3       factors of keys, values and the inputs of down (arXiv:2205.05638)
                     adapter   bottlenecks in the layers
                     prompt    virtual tokens (arXiv:2104.08691)
                     prefix    virtual keys and values in every layer (arXiv:2101.00190)
    also             regex of names or paths of the model's own parameters that are trained beside
                     the adapters
    bottleneck       width of the bottlenecks
    placement        houlsby   behind attention and feed-forward (arXiv:1902.00751)
                     pfeiffer  behind feed-forward alone (arXiv:2005.00247)
    virtual_tokens   length of a prompt or prefix, in tokens

    A field that the method does not read is refused.
    """

    method: str = "full"
    also: str = ""
    bottleneck: int = 64
    placement: str = "houlsby"
    virtual_tokens: int = 20

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"tune.method={self.method!r}; choose one of {', '.join(METHODS)}")
        # A setting that does nothing is a mistake in a config, so it is refused and not ignored.
        read = ("method", *METHODS[self.method].settings)
        for field in fields(self):
            if field.name not in read and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"tune.{field.name} is set and tune.method={self.method!r} does not use it; "
                    "leave it out"
                )
        if self.method == "part" and not self.also:
            raise ValueError(
                "tune.method='part' trains what tune.also names, which is empty; set "
                "config.tune.also, for example to 'image/projector'"
            )
        if self.placement not in PLACEMENTS:
            raise ValueError(
                f"tune.placement={self.placement!r}; choose one of {', '.join(PLACEMENTS)}"
            )
        for name in ("bottleneck", "virtual_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"tune.{name}={getattr(self, name)} must be positive")


@dataclass(frozen=True)
class QuantizeConfig:
    """The section config.quantize: formats of the frozen parameters, by their names in
    research/weights/formats.py; "" leaves them in the compute type.

    format           of the matrices that `targets` chooses
    targets          regex of names or paths; "all-linear" is every matrix of the layers
    embeddings       of the embedding and head tables
    group            how many values share a scale; None takes the format's own number
    """

    format: str = ""
    targets: str = ALL_LINEAR
    embeddings: str = ""
    group: int | None = None

    def __post_init__(self):
        for field in ("format", "embeddings"):
            if getattr(self, field) and getattr(self, field) not in FORMATS:
                raise ValueError(
                    f"quantize.{field}={getattr(self, field)!r}; choose one of {', '.join(FORMATS)}"
                )
        if self.group is not None and self.group < 1:
            raise ValueError(f"quantize.group={self.group} must be positive")
        # `embeddings` alone is a valid choice: tables in fewer bits, matrices as they are.
        if not self.format and (self.group is not None or self.targets != ALL_LINEAR):
            raise ValueError(
                "quantize.group and quantize.targets have no effect without quantize.format; leave "
                "them out"
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"quantize.targets={self.targets!r} is no regular expression: {error}"
            ) from None


def refuse_unused(tune: TuneConfig, lora: LoraConfig, quantize: QuantizeConfig) -> None:
    """ValueError if config.lora or config.quantize is set and the method does not read it."""
    if not METHODS[tune.method].lora and lora != LoraConfig():
        raise ValueError(
            f"config.lora is set and tune.method={tune.method!r} does not use it; set "
            "config.tune.method=lora"
        )
    if METHODS[tune.method].added is None and quantize != QuantizeConfig():
        raise ValueError(
            "config.quantize freezes weights and tune.method='full' trains them: codes have no "
            "gradient; set "
            "config.tune.method=lora, or another adapter, or leave config.quantize out"
        )


def fresh_parts(c: ModelConfig) -> tuple[str, ...]:
    """Names at the top of the tree of layers that a checkpoint may lack. They are then initialized
    as in an untrained model, so every method must train them."""
    return ("classifier", "pooler", *(["head"] if c.head_pools else []))


def split_specs(
    specs: tree.Tree,
    model: ModelConfig,
    tune: TuneConfig,
    lora: LoraConfig,
    quantize: QuantizeConfig,
) -> tuple[tree.Tree, tree.Tree]:
    """(trainable, frozen) specs from a model's specs: adapters and parameters trained themselves,
    and the rest, quantized as `quantize` says. ValueError for targets that match nothing, and for
    matrices that the method or the format does not support."""
    # Full fine-tuning has no frozen part: {} instead of a tree with nothing in it.
    method = METHODS[tune.method]
    if method.added is None:
        return specs, {}
    by_path = tree.paths(specs)
    fresh = fresh_parts(model)
    # Parameters that are trained themselves leave the frozen tree first: no adapter goes on them.
    plain = [path for path in by_path if path.split("/")[0] in fresh]
    plain += tree.match(tune.also, by_path) if tune.also else []
    frozen = tree.unflatten({path: spec for path, spec in by_path.items() if path not in plain})
    added = tree.paths(method.added(frozen, model, tune, lora), is_leaf)
    # Formats are chosen last: adapters were derived from the axes of the dense specs, and a
    # quantized spec no longer has those.
    trainable = tree.unflatten({**added, **{path: by_path[path] for path in plain}})
    return trainable, quantize_specs(frozen, quantize_rules(frozen, quantize), quantize.group)


def quantize_rules(specs: tree.Tree, config: QuantizeConfig) -> list[tuple[str, str | None]]:
    """The config as rules for `research.weights.rules.quantize` on a tree with these specs."""
    # Ordered rules, the first match counts: tables come first, since a pattern of `targets` might
    # match them too.
    names, rules = list(tree.paths(specs)), []
    if config.embeddings:
        rules += [
            (re.escape(path), config.embeddings)
            for path in names
            if path in ("embed/table", "head/table")
        ]
    if config.format:
        targets = LINEAR if config.targets == ALL_LINEAR else config.targets
        # `match` also takes last names, rules only whole paths: so one rule for each path.
        rules += [(re.escape(path), config.format) for path in tree.match(targets, names)]
    # Every path must be covered by a rule, and what nobody chose stays as it is.
    return [*rules, (".*", None)]


def new_frozen(
    specs: tree.Tree,
    frozen: tree.Tree,
    config: QuantizeConfig,
    seed: int,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
) -> tree.Tree:
    """Random parameters in the place of a checkpoint's for the `frozen` part of a model's specs, to
    try speed and memory without a checkpoint."""
    # Drawn dense and then quantized, as a checkpoint would be.
    dense = dense_specs(specs, frozen)
    params = initialize(jax.random.key(seed), dense, dtype, mesh, rules)
    return quantize(params, dense, quantize_rules(dense, config), config.group)


def check_groups(specs: tree.Tree, frozen: tree.Tree, mesh: Mesh, rules: AxisRules) -> None:
    """ValueError, naming the path, for a quantized matrix whose inputs a compute axis of the mesh
    splits, but whose groups it cannot split."""
    by_path = tree.paths(specs)
    for path, leaf in tree.paths(frozen, is_leaf).items():
        # Only quantized leaves have groups; a dense frozen weight can be split anywhere.
        if is_quantized(leaf):
            try:
                check_split(leaf, by_path[path], mesh, rules)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None


def dense_specs(specs: tree.Tree, part: tree.Tree) -> tree.Tree:
    """The model's own (dense) specs at the paths of `part`, whatever leaves stand there."""
    names = tree.paths(part, is_leaf)
    return tree.unflatten({path: spec for path, spec in tree.paths(specs).items() if path in names})
