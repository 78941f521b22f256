"""What a `ModelConfig` refuses: choices that do not exist, numbers out of range, fields that
contradict each other, and fields that are set and change nothing in such a model.

A field says itself what it may be and which models use it (`choice`, `setting`); only what several
fields must agree on is written here.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, field
from types import SimpleNamespace
from typing import Any

from research.models.kinds import KINDS, spell
from research.models.part_checks import check_latent, check_places, check_routing, check_sound
from research.ops.rope_scaling import unused as unused_scaling


@dataclass(frozen=True)
class Use:
    """The models in which a field changes something: those for which `of(config)` is true. `wanted`
    is the setting that makes a model one of them, for error messages."""

    of: Callable[[Any], bool]
    wanted: str


# Conditions under which a field matters, shared by the fields that need the same one.
ROTARY = Use(lambda c: c.position == "rope", "model.position='rope'")
ENCODERS = Use(lambda c: c.kind == "encoder", "model.kind='encoder'")
SCALED = Use(
    lambda c: "original_length" not in unused_scaling(_scaling(c)),
    "a model.rope_scaling with an original_length",
)
NOT_RELATIVE = Use(
    lambda c: c.position != "relative", "another model.position, which has them with 'relative'"
)
LEARNED = Use(lambda c: c.position == "learned", "model.position='learned'")
ONE_STACK = Use(lambda c: c.kind != "encoder_decoder", "model.kind='decoder'")
TWO_STACKS = Use(lambda c: c.kind == "encoder_decoder", "model.kind='encoder_decoder'")
SOUND = Use(lambda c: c.mels > 0, "model.mels")
WITHOUT_TYPES = Use(
    lambda c: not c.token_types, "model.token_types=0, whose models have that norm too"
)
EXPERTS = Use(lambda c: c.experts > 0, "model.experts")
SPARSEMIXER = Use(
    lambda c: c.experts > 0 and c.router == "sparsemixer", "model.router='sparsemixer'"
)
SHARED = Use(lambda c: c.shared_d_ff > 0, "model.shared_d_ff")
GROUPED = Use(lambda c: c.route_groups > 1, "model.route_groups")
DENSE_FIRST = Use(lambda c: c.dense_layers > 0, "model.dense_layers")
LATENT = Use(lambda c: c.kv_latent > 0, "model.kv_latent")
GATED = Use(lambda c: c.gated, "model.gated=True")
SILU_GATE = Use(
    lambda c: c.gated and c.activation == "silu", "model.gated=True and model.activation='silu'"
)
WINDOWED = Use(lambda c: c.window > 0, "model.window")
WITH_GLOBAL = Use(lambda c: c.global_every > 0 or "global" in c.layer_kinds, "model.global_every")
PERIODIC = Use(lambda c: not c.layer_kinds, "model.layer_kinds=(), which names every layer's kind")
QUERY_NORM = Use(lambda c: c.query_norm, "model.query_norm=True")
RMS = Use(lambda c: c.norm == "rms", "model.norm='rms'")
LAYER_NORM = Use(lambda c: c.norm == "layer", "model.norm='layer'")
NORM_BEFORE = Use(
    lambda c: c.norm_before and not c.norm_after, "model.norm_before, without norm_after"
)
OF_TEXTS = Use(lambda c: c.labels_over == "text", "model.labels_over='text'")
LABELLED = Use(lambda c: c.labels > 0, "model.labels")
POOLED = Use(
    lambda c: c.pooler or c.kind == "decoder" or c.labels_over != "text",
    "model.pooler=True, model.labels_over='tokens' or model.kind='decoder'",
)
PLAIN_HEAD = Use(lambda c: not c.mlm_head, "model.mlm_head=False, which has that bias too")


def _scaling(c: Any) -> dict[str, Any]:
    # A dictionary where the fields of an experiment are not a config yet.
    scaling = c.rope_scaling
    return scaling if isinstance(scaling, dict) else dataclasses.asdict(scaling)


def choice(*names: str, default: str = "") -> Any:
    """A field that is one of `names`, by default the first."""
    return field(default=default or names[0], metadata={"choices": names})


def setting(
    default: Any,
    *uses: Use,
    positive: bool = False,
    weighs: str = "",
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with what `check` has to know of it beside its default.

    A number must be positive with `positive`, else at least 0. `uses` are the models in which the
    field changes something: in others it must keep its default. `weighs` is the name of the layer
    loss that the field weighs, `choices` are the values of one that has names.
    """
    metadata = {"uses": uses, "positive": positive, "weighs": weighs, "choices": choices}
    return field(default=default, metadata=metadata)


def missing_use(c: Any, of: Field) -> Use | None:
    """The first `Use` of a field that a config does not meet; None if the field changes something.
    `c` is a config or a namespace with its values."""
    return next((use for use in of.metadata.get("uses", ()) if not use.of(c)), None)


def reset_unused(
    config: type, values: Mapping[str, Any], given: Collection[str] = ()
) -> dict[str, Any]:
    """`values` of the fields of `config`, with every field that changes nothing in this model reset
    to its default. Example: a LLaMA preset with learned positions has a `rope_theta` without use.

    Fields in `given` stay: the user has set them, so `check` must be able to refuse them. The
    section `rope_scaling` is a dictionary here; name a field of it "rope_scaling.NAME" in `given`.
    """
    kept, before = dict(values), None
    defaults = dataclasses.asdict(config())
    # A namespace, because a `ModelConfig` with a useless field refuses to be made.
    while kept != before:  # resetting one field can make another useless
        before = dict(kept)
        for one in dataclasses.fields(config):
            name = one.name
            if name in kept and name not in given and missing_use(SimpleNamespace(**before), one):
                kept[name] = defaults[name]
    if "rope_scaling" in kept:
        kept["rope_scaling"] = {
            name: defaults["rope_scaling"][name]
            if name in unused_scaling(kept["rope_scaling"]) and f"rope_scaling.{name}" not in given
            else value
            for name, value in kept["rope_scaling"].items()
        }
    return kept


def check(c: Any) -> None:
    """ValueError for a `research.models.config.ModelConfig` that describes no model; the message
    names the field to change."""
    for one in dataclasses.fields(c):
        value, choices = getattr(c, one.name), one.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"model.{one.name}={value!r}; choose one of {', '.join(choices)}")
    _check_ranges(c)
    _check_combinations(c)
    # Last: whether a field has a use is only known of values that are in range.
    for one in dataclasses.fields(c):
        # Refused and not ignored: the user believes that the field does something.
        value, missing = getattr(c, one.name), missing_use(c, one)
        if value != one.default and missing:
            raise ValueError(
                f"model.{one.name}={value} changes nothing in this model; "
                f"set {missing.wanted}, or leave it at {one.default}"
            )
    scaling, plain = dataclasses.asdict(c.rope_scaling), dataclasses.asdict(type(c.rope_scaling)())
    for name in unused_scaling(scaling):
        if scaling[name] != plain[name]:
            raise ValueError(
                f"model.rope_scaling.{name}={scaling[name]} changes nothing beside factor="
                f"{scaling['factor']} and kind={scaling['kind']!r}; set "
                f"model.rope_scaling.factor and kind, or leave it at {plain[name]}"
            )


def _check_ranges(c: Any) -> None:
    for one in dataclasses.fields(c):
        value, positive = getattr(c, one.name), one.metadata.get("positive")
        # Strings, and the scaling of positions, which checks itself.
        if not isinstance(value, int | float):
            continue
        # NaN compares with nothing, so it is refused too.
        if not (0 < value if positive else 0 <= value) or value == math.inf:
            wanted = "positive" if positive else "at least 0"
            raise ValueError(f"model.{one.name}={value} must be {wanted}")
    if not c.dropout < 1:
        raise ValueError(f"model.dropout={c.dropout} must be in [0, 1)")


def _check_combinations(c: Any) -> None:
    # Each key head serves the same number of query heads (arXiv:2305.13245).
    if c.heads % c.kv_heads:
        raise ValueError(f"model.heads={c.heads} must be a multiple of model.kv_heads={c.kv_heads}")
    # One of two spellings alone would silently make another model than was meant.
    if (c.kind == "encoder_decoder") != (c.encoder_layers > 0):
        raise ValueError(
            f"model.encoder_layers={c.encoder_layers} does not fit model.kind={c.kind!r}; "
            "encoder-decoders have one or more, other models 0; set one of the two"
        )
    if c.mels:
        check_sound(c)
    check_places(c)
    if c.experts:
        check_routing(c)
    if c.kv_latent:
        check_latent(c)
    if c.position == "rope":
        _check_rotation(c)
    # Sinusoids are pairs of a sine and a cosine.
    if c.position == "sinusoidal" and c.d_model % 2:
        raise ValueError(f"model.d_model={c.d_model} must be even for sinusoidal positions")
    if c.global_every == 1:
        raise ValueError(
            f"model.global_every=1 leaves no layer model.window={c.window}; set model.window=0"
        )
    if c.layer_kinds:
        _check_kinds(c)
    if c.labels_over == "spans" and c.labels != 2:
        raise ValueError(
            f"model.labels={c.labels} beside model.labels_over='spans': set model.labels=2, of the "
            "first and the last token of an answer"
        )
    _check_norms(c)


def _check_norms(c: Any) -> None:
    if c.branch_norm and c.norm_after:
        raise ValueError(
            "model.branch_norm and model.norm_after normalise a branch twice; set one of them"
        )
    if not c.norm_before and not c.branch_norm:
        raise ValueError(
            "model.norm_before=False leaves branches without a norm; set model.branch_norm=True"
        )
    # Each branch's norm follows its own sum, of which there is one here.
    if c.parallel and (c.norm_after or c.kind == "encoder_decoder"):
        raise ValueError(
            "model.parallel adds all branches at once; set model.norm_after=False and "
            "a model.kind with one stack"
        )


def _check_rotation(c: Any) -> None:
    """ValueError for heads whose rotated elements make no pairs, or not those of the scaling."""
    size = c.rotary_size or c.head_size
    if size % 2:
        field = "rotary_size" if c.rotary_size else "head_size"
        raise ValueError(f"model.{field}={size} must be even for rotary positions")
    if c.rotary_size >= c.head_size:
        raise ValueError(
            f"model.rotary_size={c.rotary_size} must be below model.head_size={c.head_size}; "
            "0 rotates all of a head"
        )
    if c.unrotated_every == 1:
        raise ValueError(
            "model.unrotated_every=1 leaves no layer rotary positions; set it to 2 or more"
        )
    for name in ("short_factors", "long_factors"):
        factors = getattr(c.rope_scaling, name)
        if factors and len(factors) != size // 2:
            raise ValueError(
                f"model.rope_scaling.{name} has {len(factors)} numbers, and heads have "
                f"{size // 2} rotary pairs; give one for each"
            )


def _check_kinds(c: Any) -> None:
    """ValueError for a list of kinds that is not one for each layer, or that says in another way
    what other fields say."""
    unknown = [name for name in c.layer_kinds if name not in KINDS]
    if unknown:
        raise ValueError(f"model.layer_kinds has {unknown[0]!r}; there are {', '.join(KINDS)}")
    if len(c.layer_kinds) != c.layers or c.kind == "encoder_decoder":
        raise ValueError(
            f"model.layer_kinds names {len(c.layer_kinds)} layers; give a name for each of "
            f"model.layers={c.layers}, in a model with one stack"
        )
    fields = spell(c.layer_kinds)
    if not fields["layer_kinds"]:
        periods = ", ".join(f"model.{name}={n}" for name, n in fields.items() if n)
        raise ValueError(
            f"model.layer_kinds follow a period; set {periods or 'nothing'} instead of the list"
        )
    local = any(name.startswith("local") for name in c.layer_kinds)
    if c.window and not local:
        raise ValueError(f"no layer of model.layer_kinds sees model.window={c.window}; set it to 0")
    if not c.window and {"global", "local_unrotated"} & set(c.layer_kinds):
        raise ValueError(
            "without a window the kinds of model.layer_kinds are local and unrotated; "
            "set model.window, or name these"
        )
    if c.position != "rope" and any("unrotated" in name for name in c.layer_kinds):
        raise ValueError("model.layer_kinds has unrotated layers; set model.position='rope'")
