"""Optimizers as optax chains over stacked parameters.

The parameters of all layers are stacked, so a norm's scale is [L, D] and a query kernel
[L, D, N, H]. Whether a parameter is a vector or a matrix, and over which axes a mean is taken,
follows from its logical axes, never from `ndim`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research import tree
from research.training.adam8bit import scale_by_adam_8bit
from research.training.kinds import decay_multiples, hold_constants, kinds_of
from research.training.muon import scale_by_muon, stack_axes
from research.training.narrow import widen_float16
from research.training.schedules import DECAYING, SCHEDULES, Schedule, make_schedule
from research.training.zeros import keep_zeros

Rules = tuple[tuple[str, float], ...]

# The settings of each optimizer, and the defaults for those that the config leaves None.
_SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},  # b2 of GPT-3 and LLaMA
    "adamw8bit": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},
    "adafactor": {"b1": None, "eps": 1e-30, "parameter_scale": False},
    "lion": {"b1": 0.9, "b2": 0.99},  # arXiv:2302.06675
    "muon": {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "momentum": 0.95},
}


@dataclass(frozen=True)
class OptimizerConfig:
    """The section config.optimizer: an optimizer, its schedule (see `make_schedule`) and its rules
    by path.

    name                   adamw | adamw8bit | adafactor | lion | muon (its b1, b2 and eps are those
                           of the AdamW that updates everything but the hidden matrices)
    learning_rate          at the peak of the schedule
    decay_fraction         `decay_steps` as a share of the run
    b1                     adafactor: momentum, None for none
    parameter_scale        adafactor: updates in units of the parameter's root mean square
    weight_decay           each step subtracts weight_decay * learning rate * weight, decoupled from
                           the gradient (arXiv:1711.05101). By default matrices decay and vectors
                           do not
    decay_embeddings       whether lookup tables decay too
    weight_decay_rules     ordered (path regex, multiple of weight_decay), covering every parameter
    learning_rate_rules    ordered (path regex, multiple of learning_rate), covering every parameter
    keep_zeros             weights of the layers' matrices that pruning has made 0 stay 0
    clip_norm              largest norm of all gradients together, None for no limit

    A field that the chosen optimizer or schedule does not use is refused.
    """

    name: str = "adamw"
    learning_rate: float = 3e-4
    schedule: str = "cosine"
    warmup_steps: int | None = None
    decay_steps: int | None = None
    decay_fraction: float | None = None
    min_ratio: float | None = None
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    parameter_scale: bool | None = None
    weight_decay: float = 0.1
    decay_embeddings: bool = True
    weight_decay_rules: Rules = ()
    learning_rate_rules: Rules = ()
    clip_norm: float | None = 1.0
    keep_zeros: bool = False

    def __post_init__(self):
        if self.name not in _SETTINGS:
            raise ValueError(f"optimizer.name={self.name!r}; choose one of {', '.join(_SETTINGS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"optimizer.schedule={self.schedule!r}; choose one of {', '.join(SCHEDULES)}"
            )
        # Lists, as JSON gives them, become tuples, so that configs compare and hash.
        for field in ("weight_decay_rules", "learning_rate_rules"):
            object.__setattr__(
                self, field, tuple((pattern, number) for pattern, number in getattr(self, field))
            )
        self._refuse_unused()
        for field in ("b1", "b2", "momentum", "min_ratio", "decay_fraction"):
            value = getattr(self, field)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"optimizer.{field}={value} must lie between 0 and 1")
        numbers = ("learning_rate", "eps", "weight_decay", "clip_norm")
        for field in (*numbers, "warmup_steps", "decay_steps"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"optimizer.{field}={value} must be a number of at least 0")

    def _refuse_unused(self) -> None:
        for field in ("b1", "b2", "eps", "momentum", "parameter_scale"):
            if getattr(self, field) is not None and field not in _SETTINGS[self.name]:
                raise ValueError(
                    f"optimizer.{field} is set and {self.name} does not use it; leave it out"
                )
        for field in ("decay_steps", "decay_fraction", "min_ratio"):
            if getattr(self, field) is not None and self.schedule not in DECAYING:
                raise ValueError(
                    f"optimizer.{field} is set and schedule {self.schedule} does not use it; "
                    "leave it out"
                )
        if self.decay_steps is not None and self.decay_fraction is not None:
            raise ValueError(
                "optimizer.decay_steps and optimizer.decay_fraction are both set; leave one out"
            )
        if self.weight_decay_rules and not self.decay_embeddings:
            raise ValueError(
                "optimizer.decay_embeddings has no effect beside weight_decay_rules; say it there"
            )
        if self.weight_decay_rules and not self.weight_decay:
            raise ValueError(
                "optimizer.weight_decay_rules has no effect where weight_decay is 0; leave it out"
            )

    def setting(self, field: str) -> Any:
        """The value of b1, b2, eps, momentum or parameter_scale; the optimizer's default if the
        config leaves it None."""
        value = getattr(self, field)
        return _SETTINGS[self.name][field] if value is None else value


def make(
    config: OptimizerConfig, axes: tree.Tree, total_steps: int, specs: tree.Tree | None = None
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
    """(optax transformation of gradients into updates, learning rate by step). The learning rate is
    that before `learning_rate_rules`.

    `axes` is a tree like the parameters, with a tuple of logical axis names for each; `specs` is
    one of their specs, whose `kind` counts before the axes (see research/training/kinds.py).
    `update(gradients, state, params, grad_norm=norm)` clips by a norm that is already known
    (`global_norm`), or computes it. Each array of the state is sharded as its parameter. ValueError
    for rules that match nothing or leave a parameter out.
    """
    decay_steps = config.decay_steps
    if config.decay_fraction is not None:
        # A share that rounds to no step still decays at the last one.
        decay_steps = max(1, round(config.decay_fraction * total_steps))
    schedule = make_schedule(
        config.schedule,
        config.learning_rate,
        total_steps,
        config.warmup_steps,
        decay_steps,
        config.min_ratio,
    )
    names = jax.tree.map(" ".join, axes, is_leaf=lambda leaf: type(leaf) is tuple)
    links = [] if config.clip_norm is None else [clip_by_global_norm(config.clip_norm)]
    # Order as in AdamW: clip, direction, decay (not seen by the moments), multiples, learning rate.
    kinds = kinds_of(names, specs)
    links.append(_direction(config, names, kinds))
    if config.weight_decay:
        multiples = decay_multiples(
            config.weight_decay_rules, config.decay_embeddings, names, kinds
        )
        links.append(_decay_weights(config.weight_decay, multiples))
    if config.learning_rate_rules:
        links.append(_multiply(tree.choose(config.learning_rate_rules, names)))
    links.append(hold_constants(optax.scale_by_learning_rate(schedule), kinds))
    if config.keep_zeros:
        links.append(keep_zeros(names))
    return widen_float16(optax.chain(*links)), schedule


def global_norm(gradients: tree.Tree) -> jax.Array:
    """The Euclidean norm of all leaves taken as one vector, a float32 scalar. Summed in float32:
    the squares of bfloat16 gradients would lose most of their sum."""
    return jnp.sqrt(
        sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradients))
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` that also takes an already known norm as `grad_norm`.

    It multiplies by one factor, which XLA fuses with the update. optax's divides first and stores a
    second set of gradients.
    """

    def _update(updates, state, params=None, *, grad_norm=None, **unused):
        del params, unused
        # A norm of 0 gives infinity, of which the minimum is 1.
        factor = jnp.minimum(
            1.0, max_norm / (global_norm(updates) if grad_norm is None else grad_norm)
        )
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), _update)


def per_layer(
    transform: optax.GradientTransformation, names: tree.Tree
) -> optax.GradientTransformation:
    """`transform` applied separately to each layer and expert of each leaf, for transforms that
    take means over a leaf.

    `names` is a tree of logical axes such as "layers embed mlp". Scalars of the state, such as
    counts, are shared by the layers of a leaf.
    """
    structure = jax.tree.structure(names)
    # Statistics over a stack would mix the layers, which are unrelated matrices.
    axes = [name.split() for name in jax.tree.leaves(names)]
    # A number for each layer (an adapter's alpha / rank) is one vector: a mean needs an axis.
    depths = [stack_axes(one) % len(one) if one else 0 for one in axes]

    def _init(params):
        leaves = structure.flatten_up_to(params)
        return structure.unflatten(
            _stacked(transform.init, depth)(leaf) for depth, leaf in zip(depths, leaves)
        )

    def _update(updates, state, params):
        leaves = zip(depths, *map(structure.flatten_up_to, (updates, state, params)))
        results = [_stacked(transform.update, depth)(*leaf) for depth, *leaf in leaves]
        return tuple(map(structure.unflatten, zip(*results)))

    return optax.GradientTransformation(_init, _update)


def _stacked(function: Callable, depth: int) -> Callable:
    """`function` mapped over the first `depth` axes of all arrays. Scalars, such as counts, are
    passed to every call."""
    if depth == 0:
        return function
    inner = _stacked(function, depth - 1)

    def _mapped(*arguments):
        one_layer = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), arguments)
        axes = jax.tree.map(
            lambda x: 0 if x.ndim else None, (arguments, jax.eval_shape(inner, *one_layer))
        )
        return jax.vmap(inner, *axes)(*arguments)

    return _mapped


def _direction(
    config: OptimizerConfig, names: tree.Tree, kinds: tree.Tree
) -> optax.GradientTransformation:
    """The optimizer's own transformation, from gradients to updates before weight decay and
    learning rate."""
    value = config.setting
    if config.name == "lion":
        return optax.scale_by_lion(value("b1"), value("b2"))
    if config.name == "adafactor":
        # arXiv:1804.04235, sections 4 and 6: factored second moments, and updates clipped to an RMS
        # of 1.
        links = [optax.scale_by_factored_rms(epsilon=value("eps")), optax.clip_by_block_rms(1.0)]
        links += [optax.scale_by_param_block_rms()] if value("parameter_scale") else []
        momentum = [] if value("b1") is None else [optax.ema(value("b1"), debias=False)]
        return optax.chain(per_layer(optax.chain(*links), names), *momentum)
    if config.name == "adamw8bit":
        return scale_by_adam_8bit(value("b1"), value("b2"), value("eps"), names)
    adam = optax.scale_by_adam(value("b1"), value("b2"), value("eps"))
    if config.name == "adamw":
        return adam
    # Muon is defined for the matrices of hidden layers; embeddings, heads and vectors take AdamW,
    # as in Jordan's runs.
    labels = jax.tree.map(
        lambda name, kind: (
            "muon" if kind == "matrix" and name.split()[0] == "layers" else "adamw"
        ),
        names,
        kinds,
    )
    hidden = jax.tree.map(
        lambda name, label: name if label == "muon" else optax.MaskedNode(), names, labels
    )
    return optax.partition(
        {"muon": scale_by_muon(hidden, value("momentum")), "adamw": adam}, labels
    )


def _decay_weights(weight_decay: float, multiples: tree.Tree) -> optax.GradientTransformation:
    """`optax.add_decayed_weights` with a multiple of `weight_decay` for each parameter."""

    def decay(update, param, multiple):
        return update + (weight_decay * multiple) * param if multiple else update

    return optax.stateless(lambda updates, params: jax.tree.map(decay, updates, params, multiples))


def _multiply(multiples: tree.Tree) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, m: u * m, updates, multiples)
    )
