"""The configuration of a transformer: one flat dataclass for all families.

`ModelConfig` inherits its fields from parts: `Body` and `Heads` (together `Shape`) are what the
parameters compute, `Regularization` what training adds to the loss, `Initialization` how new
parameters are drawn. `dataclasses.fields(Shape)` lists a part's fields; no list is kept by hand.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax

from research.models.config_checks import (
    ENCODERS,
    EXPERTS,
    PLAIN_HEAD,
    POOLED,
    RMS,
    ROTARY,
    WINDOWED,
    WITH_GLOBAL,
    check,
    choice,
    missing_use,
    reset_unused,
    setting,
)
from research.ops.attention import IMPLEMENTATIONS
from research.ops.kernels import grouped_matmul
from research.ops.rope import RopeScaling

# What a layer keeps for its backward pass, see `Execution`.
REMATS = ("none", "full", "dots", "offload")


@dataclass(frozen=True)
class Body:
    """What the logits of a text are computed from: embeddings, layers and a plain head."""

    # Each field says which values it may have and in which models it changes anything; `check`
    # refuses the others.
    kind: str = choice("decoder", "encoder", "encoder_decoder")
    vocab_size: int = setting(32000, positive=True)
    layers: int = setting(12, positive=True)
    encoder_layers: int = 0  # encoder-decoders only, where `layers` counts the decoder's
    d_model: int = setting(768, positive=True)
    heads: int = setting(12, positive=True)
    kv_heads: int = setting(12, positive=True)
    head_size: int = setting(64, positive=True)
    d_ff: int = setting(3072, positive=True)
    # rows of a learned position table; otherwise the length that the model was made for
    max_length: int = setting(1024, positive=True)
    position: str = choice("rope", "learned", "sinusoidal", "relative")
    rope_theta: float = setting(10000.0, ROTARY, positive=True)
    rope_scaling: RopeScaling = setting(RopeScaling(), ROTARY)
    # A token sees itself and the window - 1 before it (arXiv:2310.06825, section 2); 0: all.
    window: int = 0
    # Layers n - 1, 2n - 1, ... see all of the text, the others the window (Gemma 2 and 3);
    # 0: every layer has the window.
    global_every: int = setting(0, WINDOWED)
    # Rotary base of the layers with a window, which `rope_scaling` then leaves as they are
    # (Gemma 3); 0: both kinds of layers rotate alike.
    local_rope_theta: float = setting(0.0, ROTARY, WITH_GLOBAL)
    norm: str = choice("rms", "layer")
    norm_after: bool = False  # normalise after the residual sum (arXiv:1706.03762)
    branch_norm: bool = False  # normalise what a branch adds to the sum, beside its input (Gemma 2)
    # RMS norms scale by this + w (1 in Hugging Face's Gemma files).
    norm_offset: float = setting(0.0, RMS)
    norm_eps: float = setting(1e-5, positive=True)
    query_norm: bool = False  # RMS norm of each query and key head (Qwen 3)
    activation: str = choice("gelu", "gelu_tanh", "silu", "relu", default="silu")
    gated: bool = True  # activation(x gate) * (x up), not activation(x up) (arXiv:2002.05202)
    attention_bias: str = choice("none", "qkv", "all")
    mlp_bias: bool = False
    attention_scale: float = 0.0  # multiplies the scores; 0: head_size ** -0.5
    attention_softcap: float = 0.0  # scores s become c tanh(s / c) (arXiv:2408.00118); 0: stay
    embedding_scale: float = setting(1.0, positive=True)  # multiplies the embeddings
    experts: int = 0  # 0: a dense layer
    experts_per_token: int = setting(2, EXPERTS)
    token_types: int = setting(0, ENCODERS)  # BERT's segment embeddings
    tied: bool = False  # the head is the embedding table
    head_scale: float = setting(1.0, positive=True)  # multiplies the final states before the head
    logit_softcap: float = 0.0  # logits z become c tanh(z / c) (arXiv:2408.00118); 0: stay


@dataclass(frozen=True)
class Heads:
    """Parameters that read the last states beside a plain head. The same body serves with and
    without them."""

    pooler: bool = setting(False, ENCODERS)  # BERT's tanh layer over the first token
    # BERT's transform and norm before the tied head, with an output bias.
    mlm_head: bool = setting(False, ENCODERS)
    head_bias: bool = setting(False, PLAIN_HEAD)  # a bias of the logits
    # Classes of a layer over the pooled text; 0: no classifier.
    labels: int = setting(0, POOLED)


@dataclass(frozen=True)
class Shape(Heads, Body):
    """What the parameters compute. An exported model keeps these fields and no others."""


# Losses that layers add to an objective's, scalars by name; `layer_loss_weights` are their weights.
LayerLosses = dict[str, jax.Array]


@dataclass(frozen=True)
class Regularization:
    """What training adds to the loss of the same parameters.

    A field that `weighs` NAME is the weight of the loss that a layer returns under that name.
    """

    dropout: float = 0.0
    # Weight of the load-balancing loss, which is taken over the tokens of a micro-batch.
    router_loss: float = setting(0.0, EXPERTS, weighs="router_balance")


@dataclass(frozen=True)
class Initialization:
    """What fresh parameters are drawn from, see `research.models.initial`."""

    # Neither changes a model whose parameters come from a checkpoint.
    init: str = choice("scaled", "plain", "xavier", "t5")
    init_std: float = 0.02


@dataclass(frozen=True)
class ModelConfig(Initialization, Regularization, Shape):
    """A transformer. `research/models/presets` has the published ones by name.

    ValueError for a value out of range, for fields that contradict each other, and for a field
    that is set and changes nothing in such a model (`experts_per_token` of a dense one).
    """

    def __post_init__(self):
        check(self)

    @property
    def final_dropout(self) -> bool:
        """True if the stack's output has dropout too, as in T5 (the code of arXiv:1910.10683)."""
        # T5 is the only family here with relative positions, so they tell it.
        return self.position == "relative"


def layer_loss_weights(c: ModelConfig) -> dict[str, float]:
    """The weight of each loss that the layers of such a model return, by the loss's name."""
    # Taken from the fields themselves: a new loss needs a field and nothing here.
    weights = {
        f.metadata.get("weighs"): getattr(c, f.name) for f in fields(c) if not missing_use(c, f)
    }
    return {name: weight for name, weight in weights.items() if name}


def config_from_json(values: Mapping[str, Any]) -> ModelConfig:
    """The config from `dataclasses.asdict(config)` read back from JSON. Absent fields, as of an
    older run, get their defaults; those that change nothing in this model are reset to theirs.
    TypeError for unknown fields."""
    # A field that came later was absent when the run was made, and its default is what then held.
    defaults = asdict(ModelConfig())
    # Merged by field: an older run may lack some of `rope_scaling`'s fields too.
    scaling = {**defaults["rope_scaling"], **values.get("rope_scaling", {})}
    kept = reset_unused(ModelConfig, {**defaults, **values, "rope_scaling": scaling})
    return ModelConfig(**{**kept, "rope_scaling": RopeScaling(**kept["rope_scaling"])})


@dataclass(frozen=True)
class Execution:
    """How the layers run. Nothing here changes the results, but for float order.

    `remat` is what a layer keeps for its backward pass: "none" recomputes nothing, "dots" keeps
    matrix products, "full" keeps the layer's input alone, "offload" keeps that input in host
    memory (on a CPU the same as "full"). `unroll` is how many layers one iteration of the scan
    runs, 0 for all of them. `attention` and `experts` name the implementations of attention and of
    the experts' products. `feed_tokens` is how many tokens of a device go through a dense
    feed-forward layer at a time, recomputed for the backward pass, 0 for all: its hidden states,
    several times as wide as the model's, bound the length of a context.
    """

    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"
    experts: str = "auto"
    feed_tokens: int = 0

    def __post_init__(self):
        if self.feed_tokens < 0:
            raise ValueError(
                f"execution.feed_tokens={self.feed_tokens} must be positive, or 0 for all"
            )
        if self.remat not in REMATS:
            raise ValueError(f"execution.remat={self.remat!r}; choose one of {', '.join(REMATS)}")
        if self.unroll < 0:
            raise ValueError(
                f"execution.unroll={self.unroll} must be positive, or 0 for all layers"
            )
        for field, names in (
            ("attention", IMPLEMENTATIONS),
            ("experts", grouped_matmul.IMPLEMENTATIONS),
        ):
            if (named := getattr(self, field)) not in names:
                raise ValueError(f"execution.{field}={named!r}; choose one of {', '.join(names)}")
