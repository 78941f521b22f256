"""ModernBERT (arXiv:2412.13663) in Hugging Face's names.

An encoder with rotary positions, gated feed-forward layers and few biases. Every third layer, from
the first on, sees all of the text, the others a window to both sides, and the two kinds have bases
of their own. The first attention reads the normalised embeddings as they are. One transform serves
the masked-LM head and the classifiers.
"""

from collections.abc import Mapping, Set
from typing import Any

from research.interop.huggingface.families.fields import (
    THEIR_ACTIVATIONS,
    activation,
    flag,
    integer,
    number,
    refuse,
)
from research.interop.huggingface.families.labels import (
    label_rules,
    labelled_class,
    read_labels,
    write_labels,
)
from research.interop.huggingface.families.rope import read_rope, write_scaling
from research.interop.storage.family import Family
from research.interop.storage.layout import Rule, norm_rules
from research.models.config import ModelConfig
from research.models.kinds import layer_kind, spell
from research.ops.rope_scaling import RopeScaling

_KINDS = {"full_attention": "global", "sliding_attention": "local"}
_TYPES = {kind: name for name, kind in _KINDS.items()}
_POOLING = {"cls": "first", "mean": "mean"}


def read_config(values: Mapping[str, Any], names: Set[str]) -> ModelConfig:
    """The model that a config.json of transformers 4 or 5 and the tensors' `names` describe.
    ValueError for settings that our layers do not compute."""
    d_model, heads = integer(values, "hidden_size"), integer(values, "num_attention_heads")
    # The head's transform has the layers' activation here.
    act = activation(values, "hidden_activation", "gelu")
    refuse(values, decoder_bias=True, tie_word_embeddings=True)
    if activation(values, "classifier_activation", "gelu") != act:
        raise ValueError(
            f"config.json has classifier_activation={values.get('classifier_activation')!r} beside "
            f"hidden_activation={values.get('hidden_activation')!r}; one for both is supported"
        )
    pooling = values.get("classifier_pooling") or "cls"
    if pooling not in _POOLING:
        raise ValueError(
            f"config.json has classifier_pooling={pooling!r}; there are {', '.join(_POOLING)}"
        )
    labels = read_labels(values, names, "head.dense.weight")
    return ModelConfig(
        kind="encoder",
        vocab_size=integer(values, "vocab_size"),
        layers=integer(values, "num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=max(1, d_model // heads),
        d_ff=integer(values, "intermediate_size"),
        max_length=integer(values, "max_position_embeddings", 8192),
        **_read_layers(values),
        norm="layer",
        norm_bias=flag(values, "norm_bias", False),
        norm_eps=number(values, "norm_eps", 1e-5),
        embedding_norm=True,
        first_norm=False,
        activation=act,
        attention_bias="all" if flag(values, "attention_bias", False) else "none",
        mlp_bias=flag(values, "mlp_bias", False),
        tied=True,
        pooler=labels.get("labels_over") == "text",
        pooling=_POOLING[pooling],
        pooler_layer="head",
        mlm_head="decoder.bias" in names,
        transform_bias=flag(values, "classifier_bias", False),
        **labels,
        dropout=number(values, "embedding_dropout", 0.0),
        init_std=number(values, "initializer_range", 0.02),
    )


def _read_layers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `ModelConfig` on kinds of layers, their window and their rotations."""
    count, types = integer(values, "num_hidden_layers"), values.get("layer_types")
    if types is None:
        period = integer(values, "global_attn_every_n_layers", 3)
        types = ["sliding_attention" if n % period else "full_attention" for n in range(count)]
    if not isinstance(types, list) or len(types) != count or not set(types) <= set(_KINDS):
        raise ValueError(
            f"config.json has layer_types={types!r}; wanted one of {', '.join(_KINDS)} for each of "
            f"{count} layers"
        )
    # transformers 5 has parameters for each kind, which win; `rope_scaling` is added to both.
    rope, more = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    rotations = {}
    for theirs, name, theta in (
        ("full_attention", "global_rope_theta", 160000.0),
        ("sliding_attention", "local_rope_theta", 10000.0),
    ):
        base = number(values, name, theta)
        own = {"rope_theta": base, **(rope.get(theirs) or {}), **more}
        found = read_rope({**values, "rope_scaling": None, "rope_parameters": own})
        rotations[_KINDS[theirs]] = found
    wide, narrow = rotations["global"], rotations["local"]
    kinds = [_KINDS[name] for name in types]
    if "local" not in kinds:
        return {"rope_theta": wide[0], "rope_scaling": wide[1]}
    if narrow[1] != RopeScaling():
        raise ValueError(
            "config.json scales the rotary positions of local layers; none is supported"
        )
    # `local_attention` counts both sides, and not the token itself.
    window = {"window": integer(values, "local_attention", 128) // 2 + 1}
    if "global" not in kinds:
        return {**window, "rope_theta": narrow[0]}
    local_theta = 0.0 if wide == narrow else narrow[0]
    thetas = {"rope_theta": wide[0], "rope_scaling": wide[1], "local_rope_theta": local_theta}
    return {**window, **thetas, **spell(kinds)}


def serves(c: ModelConfig) -> bool:
    """True for an encoder with rotary positions and a norm of the embeddings."""
    return c.kind == "encoder" and c.position == "rope" and c.embedding_norm


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, for the class that has the model's heads."""
    if c.labels:
        name = labelled_class("ModernBert", c)
    else:
        name = "ModernBertForMaskedLM" if c.mlm_head else "ModernBertModel"
    kinds = [layer_kind(c, n) if c.window else "global" for n in range(c.layers)]
    local_theta = c.local_rope_theta or c.rope_theta
    act = THEIR_ACTIVATIONS[c.activation]
    scaled = write_scaling(c) or {"rope_type": "default"}
    return {
        "architectures": [name],
        "model_type": "modernbert",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "hidden_activation": act,
        "max_position_embeddings": c.max_length,
        "layer_types": [_TYPES.get(kind, kind) for kind in kinds],
        "local_attention": 2 * (c.window - 1) if c.window else 128,
        # Both spellings: of transformers 4, which has no scaling, and of 5.
        "global_rope_theta": c.rope_theta,
        "local_rope_theta": local_theta,
        "rope_parameters": {
            "full_attention": {**scaled, "rope_theta": c.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
        **_write_period(kinds),
        "norm_eps": c.norm_eps,
        "norm_bias": c.norm_bias,
        "attention_bias": c.attention_bias == "all",
        "mlp_bias": c.mlp_bias,
        "decoder_bias": True,
        "classifier_activation": act,
        "classifier_bias": c.transform_bias,
        "classifier_pooling": {ours: theirs for theirs, ours in _POOLING.items()}[c.pooling],
        "tie_word_embeddings": True,
        "embedding_dropout": c.dropout,
        "mlp_dropout": c.dropout,
        # It would drop attention weights too, which our layers do not.
        "attention_dropout": 0.0,
        "initializer_range": c.init_std,
        **write_labels(c),
    }


def _write_period(kinds: list[str]) -> dict[str, int]:
    """The period of the global layers for releases before `layer_types`, {} where there is none."""
    for period in range(1, len(kinds) + 1):
        if kinds == ["local" if n % period else "global" for n in range(len(kinds))]:
            return {"global_attn_every_n_layers": period}
    return {}


def rules(c: ModelConfig) -> tuple[Rule, ...]:
    """The tensors of ModernBertForMaskedLM and of the classes with labels that the model has, as
    rules that read both ways. torch stores linear weights [out, in], ours are [in, out]."""
    layer = "model.layers.{layer}"
    qkv = tuple(f"layers/attention/{role}" for role in ("query", "key", "value"))
    # The first half of Wi goes through the activation, and the second half is what it gates.
    gates = ("layers/mlp/gate", "layers/mlp/up")
    tensor_rules = [
        Rule("model.embeddings.tok_embeddings.weight", "embed/table", "V D -> V D"),
        Rule(f"{layer}.attn.Wqkv.weight", qkv, "(3 N H) D -> 3 D N H"),
        Rule(f"{layer}.attn.Wo.weight", "layers/attention/out", "D (N H) -> N H D"),
        Rule(f"{layer}.mlp.Wi.weight", gates, "(2 F) D -> 2 D F"),
        Rule(f"{layer}.mlp.Wo.weight", "layers/mlp/down", "D F -> F D"),
    ]
    if c.attention_bias == "all":
        biases = tuple(f"{path}_bias" for path in qkv)
        tensor_rules += [Rule(f"{layer}.attn.Wqkv.bias", biases, "(3 N H) -> 3 N H")]
        tensor_rules += [Rule(f"{layer}.attn.Wo.bias", "layers/attention/out_bias", "D -> D")]
    if c.mlp_bias:
        biases = tuple(f"{path}_bias" for path in gates)
        tensor_rules += [Rule(f"{layer}.mlp.Wi.bias", biases, "(2 F) -> 2 F")]
        tensor_rules += [Rule(f"{layer}.mlp.Wo.bias", "layers/mlp/down_bias", "D -> D")]
    # The first layer has no norm before its attention.
    norms = [
        ("model.embeddings.norm", "embed/norm", 0),
        (f"{layer}.attn_norm", "layers/attention_norm", 1),
        (f"{layer}.mlp_norm", "layers/mlp_norm", 0),
        ("model.final_norm", "final_norm", 0),
    ]
    if c.mlm_head or c.head_pools:
        norms += [("head.norm", "head/norm", 0)]
        tensor_rules += [Rule("head.dense.weight", "head/kernel", "M D -> D M")]
        if c.transform_bias:
            tensor_rules += [Rule("head.dense.bias", "head/bias", "D -> D")]
    if c.mlm_head:
        tensor_rules += [Rule("decoder.bias", "head/output_bias", "V -> V")]
    for theirs, ours, first in norms:
        tensor_rules += norm_rules(theirs, ours, c.norm_bias, first)
    return (*tensor_rules, *label_rules(c, spans="classifier"))


FAMILY = Family(
    model_types=("modernbert",),
    serves=serves,
    read_config=read_config,
    write_config=write_config,
    rules=rules,
    prefix="model.",
    copies=(("decoder.weight", "embed/table"),),
)
