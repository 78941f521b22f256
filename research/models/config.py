"""The shape of a transformer: one dataclass for all families, and how it is executed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.ops.attention import IMPLEMENTATIONS
from research.ops.rope import RopeScaling

KINDS = ("decoder", "encoder", "encoder_decoder")
POSITIONS = ("rope", "learned", "sinusoidal", "relative")
NORMS = ("rms", "layer")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")
BIASES = ("none", "qkv", "all")
INITS = ("scaled", "plain", "xavier", "t5")
REMATS = ("none", "full", "dots", "offload")


@dataclass(frozen=True)
class ModelConfig:
    """A transformer. `research/models/presets.py` has the published ones by name."""

    kind: str = "decoder"
    vocab_size: int = 32000
    layers: int = 12
    encoder_layers: int = 0  # encoder-decoders only, where `layers` counts the decoder's
    d_model: int = 768
    heads: int = 12
    kv_heads: int = 12
    head_size: int = 64
    d_ff: int = 3072
    max_length: int = (
        1024  # rows of a learned position table; otherwise the length that the model was made for
    )
    position: str = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    # a token sees itself and the window - 1 before it (arXiv:2310.06825, section 2); 0: all of them
    window: int = 0
    norm: str = "rms"
    norm_after: bool = (
        False  # normalise after the residual sum (arXiv:1706.03762), not before the layer
    )
    norm_eps: float = 1e-5
    query_norm: bool = False  # RMS norm of each query and key head (Qwen 3)
    activation: str = "silu"
    gated: bool = True  # activation(x gate) * (x up) instead of activation(x up) (arXiv:2002.05202)
    attention_bias: str = "none"
    mlp_bias: bool = False
    attention_scale: float = 0.0  # of the scores; 0: head_size ** -0.5
    tied: bool = False  # the head is the embedding table
    embedding_scale: float = 1.0  # multiplies the embeddings
    head_scale: float = 1.0  # multiplies the final states before the head
    experts: int = 0  # 0: a dense layer
    experts_per_token: int = 2
    router_loss: float = 0.0  # weight of the load-balancing loss
    token_types: int = 0  # BERT's segment embeddings
    pooler: bool = False  # BERT's tanh layer over the first token
    mlm_head: bool = False  # BERT's transform and norm before the tied head, with an output bias
    head_bias: bool = False  # a bias of the logits
    labels: int = 0  # classes of a layer over the pooled text; 0: no classifier
    dropout: float = 0.0
    init: str = "scaled"
    init_std: float = 0.02

    def __post_init__(self):
        for field, choices in (
            ("kind", KINDS),
            ("position", POSITIONS),
            ("norm", NORMS),
            ("activation", ACTIVATIONS),
            ("attention_bias", BIASES),
            ("init", INITS),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"model.{field}={getattr(self, field)!r}; choose one of {', '.join(choices)}"
                )
        for field in (
            "vocab_size",
            "layers",
            "d_model",
            "heads",
            "kv_heads",
            "head_size",
            "d_ff",
            "max_length",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field}={getattr(self, field)} must be positive")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads={self.heads} must be a multiple of model.kv_heads={self.kv_heads}"
            )
        if (self.kind == "encoder_decoder") != (self.encoder_layers > 0):
            raise ValueError(
                f"model.encoder_layers={self.encoder_layers} does not fit model.kind={self.kind!r}"
            )
        if self.window < 0:
            raise ValueError(f"model.window={self.window} must be positive, or 0 for no window")
        if self.experts and (not self.gated or self.mlp_bias):
            raise ValueError(
                "model.experts wants model.gated=True and model.mlp_bias=False, the only experts there are"
            )
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"model.experts_per_token={self.experts_per_token} must lie in 1..{self.experts}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout} must lie in [0, 1)")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"model.head_size={self.head_size} must be even for rotary positions")
        if self.labels < 0 or (self.labels and not self.pooler):
            raise ValueError(
                f"model.labels={self.labels} must not be negative, and a classifier wants model.pooler=True"
            )


def config_from_json(values: Mapping[str, Any]) -> ModelConfig:
    """The config of `dataclasses.asdict(config)`, as JSON gives it back. TypeError for fields that
    it has not."""
    return ModelConfig(**{**values, "rope_scaling": RopeScaling(**values["rope_scaling"])})


@dataclass(frozen=True)
class Execution:
    """How the layers run. Nothing here changes what is computed.

    `remat` is what a layer keeps for its backward pass: "none" recomputes nothing, "dots" keeps
    matrix products, "full" keeps the layer's input alone, "offload" keeps that input in host
    memory, which on a CPU is no other. `unroll` is how many layers one iteration of the scan runs,
    0 for all of them; `attention` names the implementation. `feed_tokens` is how many tokens of a
    device go through a dense feed-forward layer at a time, recomputed for the backward pass, 0 for
    all: its hidden states, several times as wide as the model's, are what bounds the length of a
    context.
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
                f"execution.attention={self.attention!r}; choose one of {', '.join(IMPLEMENTATIONS)}"
            )
