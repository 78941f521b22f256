"""The configuration of a transformer: one flat dataclass for all families.

`ModelConfig` inherits its fields from parts: `Body` and `Heads` (together `Shape`) are what the
parameters compute, `Regularization` what training adds to the loss, `Initialization` how new
parameters are drawn. `dataclasses.fields(Shape)` lists a part's fields; no list is kept by hand.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from research.models.config_checks import check, reset_unused
from research.ops.attention import IMPLEMENTATIONS
from research.ops.rope import RopeScaling

REMATS = ("none", "full", "dots", "offload")


@dataclass(frozen=True)
class Body:
    """What the logits of a text are computed from: embeddings, layers and a plain head."""

    kind: str = "decoder"
    vocab_size: int = 32000
    layers: int = 12
    encoder_layers: int = 0  # encoder-decoders only, where `layers` counts the decoder's
    d_model: int = 768
    heads: int = 12
    kv_heads: int = 12
    head_size: int = 64
    d_ff: int = 3072
    # rows of a learned position table; otherwise the length that the model was made for
    max_length: int = 1024
    position: str = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    # A token sees itself and the window - 1 before it (arXiv:2310.06825, section 2); 0: all.
    window: int = 0
    # Layers n - 1, 2n - 1, ... see all of the text, the others the window (Gemma 2 and 3);
    # 0: every layer has the window.
    global_every: int = 0
    # Rotary base of the layers with a window, which `rope_scaling` then leaves as they are
    # (Gemma 3); 0: both kinds of layers rotate alike.
    local_rope_theta: float = 0.0
    norm: str = "rms"
    norm_after: bool = False  # normalise after the residual sum (arXiv:1706.03762)
    branch_norm: bool = False  # normalise what a branch adds to the sum, beside its input (Gemma 2)
    norm_offset: float = 0.0  # RMS norms scale by this + w (1 in Hugging Face's Gemma files)
    norm_eps: float = 1e-5
    query_norm: bool = False  # RMS norm of each query and key head (Qwen 3)
    activation: str = "silu"
    gated: bool = True  # activation(x gate) * (x up), not activation(x up) (arXiv:2002.05202)
    attention_bias: str = "none"
    mlp_bias: bool = False
    attention_scale: float = 0.0  # multiplies the scores; 0: head_size ** -0.5
    attention_softcap: float = 0.0  # scores s become c tanh(s / c) (arXiv:2408.00118); 0: stay
    embedding_scale: float = 1.0  # multiplies the embeddings
    experts: int = 0  # 0: a dense layer
    experts_per_token: int = 2
    token_types: int = 0  # BERT's segment embeddings
    tied: bool = False  # the head is the embedding table
    head_scale: float = 1.0  # multiplies the final states before the head
    logit_softcap: float = 0.0  # logits z become c tanh(z / c) (arXiv:2408.00118); 0: stay


@dataclass(frozen=True)
class Heads:
    """Parameters that read the last states beside a plain head. The same body serves with and
    without them."""

    pooler: bool = False  # BERT's tanh layer over the first token
    mlm_head: bool = False  # BERT's transform and norm before the tied head, with an output bias
    head_bias: bool = False  # a bias of the logits
    labels: int = 0  # classes of a layer over the pooled text; 0: no classifier


@dataclass(frozen=True)
class Shape(Heads, Body):
    """What the parameters compute. An exported model keeps these fields and no others."""


@dataclass(frozen=True)
class Regularization:
    """What training adds to the loss of the same parameters."""

    dropout: float = 0.0
    router_loss: float = 0.0  # weight of the load-balancing loss


@dataclass(frozen=True)
class Initialization:
    """What fresh parameters are drawn from, see `research.models.initial`."""

    init: str = "scaled"
    init_std: float = 0.02


@dataclass(frozen=True)
class ModelConfig(Initialization, Regularization, Shape):
    """A transformer. `research/models/presets.py` has the published ones by name.

    ValueError for a value out of range, for fields that contradict each other, and for a field
    that is set and changes nothing in such a model (`experts_per_token` of a dense one).
    """

    def __post_init__(self):
        check(self)

    @property
    def final_dropout(self) -> bool:
        """Whether the stack's output has dropout too, as T5's has (arXiv:1910.10683's code)."""
        return self.position == "relative"


def config_from_json(values: Mapping[str, Any]) -> ModelConfig:
    """The config from `dataclasses.asdict(config)` read back from JSON. Absent fields, as of an
    older run, get their defaults; those that change nothing in this model are reset to theirs.
    TypeError for unknown fields."""
    defaults = asdict(ModelConfig())
    scaling = {**defaults["rope_scaling"], **values.get("rope_scaling", {})}
    kept = reset_unused({**defaults, **values, "rope_scaling": scaling}, defaults)
    return ModelConfig(**{**kept, "rope_scaling": RopeScaling(**kept["rope_scaling"])})


@dataclass(frozen=True)
class Execution:
    """How the layers run. Nothing here changes what is computed.

    `remat` is what a layer keeps for its backward pass: "none" recomputes nothing, "dots" keeps
    matrix products, "full" keeps the layer's input alone, "offload" keeps that input in host
    memory (on a CPU the same as "full"). `unroll` is how many layers one iteration of the scan
    runs, 0 for all of them. `attention` names the implementation. `feed_tokens` is how many tokens
    of a device go through a dense feed-forward layer at a time, recomputed for the backward pass, 0
    for all: its hidden states, several times as wide as the model's, bound the length of a context.
    """

    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"
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
        if self.attention not in IMPLEMENTATIONS:
            raise ValueError(
                f"execution.attention={self.attention!r}; "
                f"choose one of {', '.join(IMPLEMENTATIONS)}"
            )
