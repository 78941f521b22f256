"""T5 (arXiv:1910.10683) in Hugging Face's names: release 1.0 with relu and tied tables, 1.1 with a
gated MLP and a head of its own; and mT5 (arXiv:2010.11934), which is 1.1 for other words.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families.fields import (
    flag,
    integer,
    number,
    read_start,
    refuse,
    write_start,
)
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule
from research.models.config import ModelConfig
from research.models.embedding import BUCKETS, FARTHEST

# feed_forward_proj as (activation, gated); transformers takes "gated-gelu" for the approximation by
# tanh, though "gelu" elsewhere is the exact one.
_ACTIVATIONS = {
    "relu": ("relu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json and the tensors' `names` describe. ValueError for settings that
    our layers do not compute.

    Whether the head is tied is told by the tensors alone: transformers 5 writes
    tie_word_embeddings=true for every T5. Releases before it read the same field as "scale the
    states by 1 / sqrt(D) before the head", which version 5 calls scale_decoder_outputs.
    """
    d_model, layers, heads = (
        integer(values, "d_model"),
        integer(values, "num_layers"),
        integer(values, "num_heads"),
    )
    # The buckets of distances are constants of our layers.
    refuse(values, relative_attention_num_buckets=BUCKETS, relative_attention_max_distance=FARTHEST)
    many = values["model_type"] == "mt5"
    name, gated = _read_feed(values.get("feed_forward_proj", "gated-gelu" if many else "relu"))
    # The class of mT5 never scales, though its files may say that tables are tied.
    scaled = not many and flag(
        values, "scale_decoder_outputs", flag(values, "tie_word_embeddings", True)
    )
    return ModelConfig(
        kind="encoder_decoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "num_decoder_layers", layers),
        encoder_layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        # T5's heads need not fill the model: 11B has 128 heads of 128 in a width of 1,024.
        head_size=integer(values, "d_kv"),
        d_ff=integer(values, "d_ff"),
        max_length=integer(values, "n_positions", 512),
        position="relative",
        norm_eps=number(values, "layer_norm_epsilon", 1e-6),
        activation=name,
        gated=gated,
        attention_scale=1.0,  # 1 / sqrt(H) is folded into the initialisation of the queries
        tied="lm_head.weight" not in names,
        # With a tied table the states are scaled down: the table has the size of embeddings (std
        # 1), not of a head.
        head_scale=d_model**-0.5 if scaled else 1.0,
        decoder_start=read_start(values, start=0 if many else None, end=1, pad=0),
        dropout=number(values, "dropout_rate", 0.1),
        init="t5",
        init_std=1.0,
    )


def _read_feed(feed: Any) -> tuple[str, bool]:
    """(activation, gated) of a feed_forward_proj, the one field that says both."""
    if feed not in _ACTIVATIONS:
        raise ValueError(
            f"config.json has feed_forward_proj={feed!r}; there are {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[feed]


def serves(c: ModelConfig) -> bool:
    """True for an encoder-decoder with relative positions."""
    return c.kind == "encoder_decoder" and c.position == "relative"


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json. ValueError for an MLP that T5 does not have."""
    feed = next(
        (theirs for theirs, ours in _ACTIVATIONS.items() if ours == (c.activation, c.gated)), None
    )
    if feed is None:
        raise ValueError(
            f"T5 has no layer with {c.activation}, gated={c.gated}; there are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": c.vocab_size,
        "d_model": c.d_model,
        "d_kv": c.head_size,
        "d_ff": c.d_ff,
        "num_layers": c.encoder_layers,
        "num_decoder_layers": c.layers,
        "num_heads": c.heads,
        "n_positions": c.max_length,
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": FARTHEST,
        "feed_forward_proj": feed,
        "layer_norm_epsilon": c.norm_eps,
        "dropout_rate": c.dropout,
        # Read by transformers as "scale the states before the head", whether or not the head is
        # the table; see `read_config`.
        "tie_word_embeddings": c.head_scale != 1.0,
        **write_start(c, end=1, pad=0),
    }


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of T5ForConditionalGeneration, as rules that read both ways. torch stores linear
    weights [out, in], ours are [in, out]."""
    # A block's sublayers are numbered: self-attention 0, then in the decoder cross-attention 1, and
    # the MLP last, which is 1 in the encoder and 2 in the decoder.
    tensor_rules = [Rule("shared.weight", "embed/table", "V D -> V D")]
    for theirs, ours, feed in (("encoder", "encoder/", 1), ("decoder", "", 2)):
        block = f"{theirs}.block.{{layer}}.layer"
        tensor_rules += _attention(f"{block}.0.SelfAttention", f"{ours}layers/attention")
        tensor_rules += [
            Rule(f"{block}.0.layer_norm.weight", f"{ours}layers/attention_norm/scale", "D -> D")
        ]
        if theirs == "decoder":
            tensor_rules += _attention(f"{block}.1.EncDecAttention", "layers/cross")
            tensor_rules += [
                Rule(f"{block}.1.layer_norm.weight", "layers/cross_norm/scale", "D -> D")
            ]
        # wi_0 goes through the activation, wi_1 is what it gates.
        names = {"wi_0": "gate", "wi_1": "up"} if c.gated else {"wi": "up"}
        for name, role in names.items():
            tensor_rules += [
                Rule(
                    f"{block}.{feed}.DenseReluDense.{name}.weight",
                    f"{ours}layers/mlp/{role}",
                    "F D -> D F",
                )
            ]
        tensor_rules += [
            Rule(
                f"{block}.{feed}.DenseReluDense.wo.weight", f"{ours}layers/mlp/down", "D F -> F D"
            ),
            Rule(f"{block}.{feed}.layer_norm.weight", f"{ours}layers/mlp_norm/scale", "D -> D"),
            Rule(f"{theirs}.final_layer_norm.weight", f"{ours}final_norm/scale", "D -> D"),
            # Only the first block has a table of relative biases; all blocks share it.
            Rule(
                f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                f"{ours}relative/table",
                "U N -> U N",
            ),
        ]
    return (
        *tensor_rules,
        *([] if c.tied else [Rule("lm_head.weight", "head/table", "V D -> V D")]),
    )


def _attention(theirs: str, ours: str) -> list[Rule]:
    # T5's linear layers have no biases.
    pairs = (("q", "query"), ("k", "key"), ("v", "value"))
    inward = [
        Rule(f"{theirs}.{name}.weight", f"{ours}/{role}", "(N H) D -> D N H")
        for name, role in pairs
    ]
    return [*inward, Rule(f"{theirs}.o.weight", f"{ours}/out", "D (N H) -> N H D")]


FAMILY = Family(
    model_types=("t5", "mt5"),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    unused=(
        (
            r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
            "cross-attention has no positions; early releases saved a table all the same",
        ),
    ),
    copies=(
        ("encoder.embed_tokens.weight", "embed/table"),
        ("decoder.embed_tokens.weight", "embed/table"),
        ("lm_head.weight", "embed/table"),
    ),
    classes={"t5": "T5", "mt5": "MT5"},
)
