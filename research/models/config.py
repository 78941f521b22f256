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
    GATED,
    LAYER_NORM,
    LEARNED,
    NORM_BEFORE,
    NOT_RELATIVE,
    ONE_STACK,
    PERIODIC,
    QUERY_NORM,
    RMS,
    ROTARY,
    SCALED,
    SILU_GATE,
    SOUND,
    TWO_STACKS,
    WINDOWED,
    WITH_GLOBAL,
    WITHOUT_TYPES,
    check,
    choice,
    missing_use,
    reset_unused,
    setting,
)
from research.models.config_parts import Heads, Latent, Routing
from research.models.image_config import ImageConfig
from research.models.sound_config import SoundConfig
from research.ops.attention import IMPLEMENTATIONS
from research.ops.kernels import grouped_matmul
from research.ops.rope_scaling import RopeScaling

# What a layer keeps for its backward pass, see `Execution`.
REMATS = ("auto", "none", "full", "dots", "offload")


@dataclass(frozen=True)
class Body(Latent, Routing):
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
    # Rows of that table before the row of the first position, which nothing reads (OPT).
    position_offset: int = setting(0, LEARNED)
    # Scores have T5's offsets by distance beside other positions (MPNet, arXiv:2004.09297).
    score_offsets: bool = setting(False, NOT_RELATIVE)
    encoder_positions: bool = setting(False, LEARNED, TWO_STACKS)  # the encoder's own table (BART)
    rope_theta: float = setting(10000.0, ROTARY, positive=True)
    rope_scaling: RopeScaling = setting(RopeScaling(), ROTARY)
    # Queries at position p are multiplied by 1 + this ln(1 + floor(p / original_length of
    # rope_scaling)) (Llama 4, Ministral 3); 0: they stay.
    query_growth: float = setting(0.0, ROTARY, SCALED)
    # First elements of each head that are rotated (Phi, GPT-NeoX, DeepSeek); 0: all of them.
    rotary_size: int = setting(0, ROTARY)
    # A token sees itself and the window - 1 before it (arXiv:2310.06825, section 2), in encoders
    # also as many behind it; 0: all.
    window: int = 0
    # Layers n - 1, 2n - 1, ... see all of the text, the others the window (Gemma 2 and 3);
    # 0: every layer has the window.
    global_every: int = setting(0, WINDOWED, PERIODIC)
    # Layers n - 1, 2n - 1, ... rotate neither queries nor keys and see all of the text (SmolLM3);
    # 0: every layer rotates.
    unrotated_every: int = setting(0, ROTARY, PERIODIC)
    # The kind of each layer, names of `research.models.kinds`, where they follow no such period.
    layer_kinds: tuple[str, ...] = ()
    # Rotary base of the layers with a window, which `rope_scaling` then leaves as they are
    # (Gemma 3); 0: both kinds of layers rotate alike.
    local_rope_theta: float = setting(0.0, ROTARY, WITH_GLOBAL)
    norm: str = choice("rms", "layer")
    norm_bias: bool = setting(True, LAYER_NORM)  # layer norms add a bias beside their scale
    embedding_norm: bool = setting(False, WITHOUT_TYPES)  # normalise the embeddings' sum (BART)
    norm_after: bool = False  # normalise after the residual sum (arXiv:1706.03762)
    # False: the first layer's attention reads its input as it is (ModernBERT); the scale that the
    # stacked layers have for it is unused.
    first_norm: bool = setting(True, NORM_BEFORE)
    branch_norm: bool = False  # normalise what a branch adds to the sum (Gemma 2)
    norm_before: bool = True  # normalise a branch's input; False in OLMo 2 (arXiv:2501.00656)
    branch_scale: float = setting(1.0, positive=True)  # multiplies what a branch adds (Granite)
    layer_scale: bool = False  # a learned vector multiplies it too (DINOv2, arXiv:2103.17239)
    # Attention and feed-forward read the same states, and their outputs are added at once
    # (GPT-NeoX, arXiv:2204.06745, section 2.1).
    parallel: bool = False
    # RMS norms scale by this + w (1 in Hugging Face's Gemma files).
    norm_offset: float = setting(0.0, RMS)
    norm_eps: float = setting(1e-5, positive=True)
    query_norm: bool = False  # RMS norm of queries and keys (Qwen 3)
    # What each of these norms takes the mean over: one head, or all heads of a token (OLMo 2).
    query_norm_over: str = setting("head", QUERY_NORM, choices=("head", "heads"))
    activation: str = choice("gelu", "gelu_tanh", "gelu_quick", "silu", "relu", default="silu")
    gated: bool = True  # activation(x gate) * (x up), not activation(x up) (arXiv:2002.05202)
    # Of gpt-oss, see `research.models.layers.gated`: the slope in a silu gate's sigmoid, the
    # largest size of what is multiplied (0: any), and a number added to what the gate multiplies.
    gate_slope: float = setting(1.0, SILU_GATE, positive=True)
    gate_limit: float = setting(0.0, GATED)
    up_offset: float = setting(0.0, GATED)
    # "no_key" is all but that of the keys, which moves no share of attention (Whisper).
    attention_bias: str = choice("none", "qkv", "all", "no_key")
    mlp_bias: bool = False  # of the feed-forward matrices, those of experts included
    attention_scale: float = 0.0  # multiplies the scores; 0: head_size ** -0.5
    attention_softcap: float = 0.0  # scores s become c tanh(s / c) (arXiv:2408.00118); 0: stay
    # Each head has a learned score of looking at nothing, see `research.ops.sinks` (gpt-oss).
    attention_sinks: bool = False
    embedding_scale: float = setting(1.0, positive=True)  # multiplies the embeddings
    experts: int = 0  # 0: a dense layer
    experts_per_token: int = setting(2, EXPERTS)
    # The mixing weights of a token's experts sum to 1; else they are shares of a softmax over all
    # experts (OLMoE, arXiv:2409.02060).
    normalized_routes: bool = setting(True, EXPERTS)
    router_logit_bias: bool = setting(False, EXPERTS)  # gpt-oss
    shared_d_ff: int = setting(0, EXPERTS)  # of an expert that all tokens share; 0: none
    token_types: int = setting(0, ENCODERS)  # BERT's segment embeddings
    # The token that a decoder reads first: padding, or the end of a text (BART).
    decoder_start: str = setting("pad", TWO_STACKS, choices=("pad", "end"))
    tied: bool = False  # the head is the embedding table
    head_scale: float = setting(1.0, positive=True)  # multiplies the final states before the head
    logit_softcap: float = 0.0  # logits z become c tanh(z / c) (arXiv:2408.00118); 0: stay
    # The encoder reads sound, not text: log-mel frames of so many bands, through two convolutions
    # (`research.models.sound`); 0: text. `frames` of them are a window, a hundred a second.
    mels: int = setting(0, TWO_STACKS)
    frames: int = setting(3000, SOUND, positive=True)
    # What makes soft tokens of images and sounds (`research.models.soft`); without layers, nothing.
    image: ImageConfig = setting(ImageConfig(), ONE_STACK)
    sound: SoundConfig = setting(SoundConfig(), ONE_STACK)


@dataclass(frozen=True)
class Shape(Heads, Body):
    """What the parameters compute. An exported model keeps these fields and no others."""

    @property
    def scores_texts(self) -> bool:
        """True for a decoder that gives a text numbers and no next words."""
        return self.kind == "decoder" and self.labels > 0

    @property
    def head_pools(self) -> bool:
        """True if the transform of the masked-LM head is what the classifier reads: it is the
        pooler, or goes over every token that has a label."""
        return self.pooler_layer == "head" and (self.pooler or self.labels_over != "text")


# Losses that layers add to an objective's, scalars by name; `layer_loss_weights` are their weights.
LayerLosses = dict[str, jax.Array]


@dataclass(frozen=True)
class Regularization:
    """What training adds to the loss of the same parameters.

    A field that `weighs` NAME is the weight of the loss that a layer returns under that name.
    """

    dropout: float = 0.0
    # Training adds noise to the embeddings of words, of at most this over sqrt(a text's tokens *
    # d_model) an element (NEFTune, arXiv:2310.05914, algorithm 1; 5 is usual); 0: none.
    embedding_noise: float = 0.0
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
    def has_offsets(self) -> bool:
        """True if scores have offsets by the distance from query to key."""
        return self.position == "relative" or self.score_offsets

    @property
    def final_dropout(self) -> bool:
        """True if the stack's output has dropout too, as in T5 (the code of arXiv:1910.10683)."""
        # T5 is the only family here with relative positions alone, so they tell it.
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
    kinds = tuple(kept["layer_kinds"])  # a list in JSON
    image = ImageConfig(**{**defaults["image"], **kept["image"]})
    sound = SoundConfig(**{**defaults["sound"], **kept["sound"]})
    scaling = RopeScaling(**kept["rope_scaling"])
    sections = {"rope_scaling": scaling, "image": image, "sound": sound}
    return ModelConfig(**{**kept, **sections, "layer_kinds": kinds})


def dense_config(c: ModelConfig) -> ModelConfig:
    """The first layers of a model with `dense_layers`, which have no experts, as a model of their
    own."""
    changes = {"layers": c.dense_layers, "d_ff": c.dense_d_ff, "experts": 0}
    changes |= {"image": {}, "sound": {}}
    return config_from_json({**asdict(c), **changes})


@dataclass(frozen=True)
class Execution:
    """How the layers run. Nothing here changes the results, but for float order.

    `remat` is what a layer keeps for its backward pass: "none" recomputes nothing, "dots" keeps
    matrix products, "full" keeps the layer's input alone, "offload" keeps that input in host memory
    (on a CPU the same as "full"). `head_tokens` is how many tokens of a device have logits at a
    time; the sum of the table's gradient is read and written once for so many. A run chooses for
    "auto" and for 0 by the memory of its device (`research.fit.lightest`) and records what it
    chose; without a run they are "none" and 512. `unroll` is how many layers one iteration of the
    scan runs, 0 for all of them. `attention` and `experts` name the implementations of attention
    and of the experts' products. `feed_tokens` is how many tokens of a device go through a dense
    feed-forward layer at a time, recomputed for the backward pass, 0 for all: its hidden states,
    several times as wide as the model's, bound the length of a context. `documents` is the most
    documents that a row of a batch holds, 0 for any number: up to 8, Hopper cards have a faster
    kernel for it (`research.ops.kernels.cudnn`). Rows with more raise. `micro_batches` is into how
    many parts a batch goes through the stages of a mesh (`research.models.pipeline`), 0 for as many
    as its rows allow, up to four for each stage.
    """

    remat: str = "auto"
    head_tokens: int = 0
    unroll: int = 1
    attention: str = "auto"
    experts: str = "auto"
    feed_tokens: int = 0
    documents: int = 0
    micro_batches: int = 0

    def __post_init__(self):
        for name in ("head_tokens", "feed_tokens", "documents", "micro_batches"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"execution.{name}={getattr(self, name)} must be positive, or 0 for all"
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
