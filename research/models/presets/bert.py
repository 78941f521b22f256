"""Encoders: BERT and those after it, RoBERTa, XLM-R, MPNet, DistilBERT, ELECTRA and ModernBERT."""

from research.models.config import ModelConfig


def bert(layers: int, d_model: int, heads: int, **changes) -> ModelConfig:
    """BERT (arXiv:1810.04805), with the vocabulary of the uncased models: post-norm encoder, token
    types, pooler, masked-LM head. `changes` are fields of the models after it."""
    fields = dict(
        kind="encoder",
        vocab_size=30522,
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=64,
        d_ff=4 * d_model,
        max_length=512,
        position="learned",
        norm="layer",
        norm_after=True,
        norm_eps=1e-12,
        activation="gelu",
        gated=False,
        attention_bias="all",
        mlp_bias=True,
        tied=True,
        token_types=2,
        pooler=True,
        mlm_head=True,
        dropout=0.1,
        init="plain",
    )
    return ModelConfig(**{**fields, **changes})


def _roberta(layers: int, d_model: int, heads: int, vocab_size: int = 50265) -> ModelConfig:
    """RoBERTa (arXiv:1907.11692) and, with 250,002 words, XLM-R (arXiv:1911.02116): BERT without a
    second text. Two rows of the position table are left to the ids up to padding's, 1."""
    sizes = dict(vocab_size=vocab_size, position_offset=2, token_types=1, norm_eps=1e-5)
    return bert(layers, d_model, heads, pooler=False, **sizes)


def _mpnet(layers: int, d_model: int, heads: int) -> ModelConfig:
    """MPNet (arXiv:2004.09297): RoBERTa without token types, its scores with offsets by distance.
    Its vocabulary is BERT's and five tokens."""
    sizes = dict(vocab_size=30527, position_offset=2, norm_eps=1e-5)
    own = dict(token_types=0, embedding_norm=True, score_offsets=True, pooler=False)
    return bert(layers, d_model, heads, **sizes, **own)


def _modernbert(layers: int, d_model: int, heads: int, d_ff: int) -> ModelConfig:
    """ModernBERT (arXiv:2412.13663, table 4): rotary positions, gated feed-forward layers, windows
    of 64 tokens to both sides in two layers of three, and norms before the branches."""
    return ModelConfig(
        kind="encoder",
        vocab_size=50368,
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_size=64,
        d_ff=d_ff,
        max_length=8192,
        rope_theta=160000.0,
        local_rope_theta=10000.0,
        window=65,
        layer_kinds=tuple("local" if layer % 3 else "global" for layer in range(layers)),
        norm="layer",
        norm_bias=False,
        embedding_norm=True,
        first_norm=False,
        activation="gelu",
        tied=True,
        pooling="mean",
        pooler_layer="head",
        mlm_head=True,
        transform_bias=False,
    )


_DISTIL = dict(token_types=0, embedding_norm=True, pooler=False, pooler_layer="relu")
_ELECTRA = dict(pooler=False, mlm_head=False, pooler_layer="gelu")

PRESETS: dict[str, ModelConfig] = {
    "bert_base": bert(12, 768, 12),
    "bert_large": bert(24, 1024, 16),
    "roberta_base": _roberta(12, 768, 12),
    "roberta_large": _roberta(24, 1024, 16),
    "xlm_roberta_base": _roberta(12, 768, 12, 250002),
    "xlm_roberta_large": _roberta(24, 1024, 16, 250002),
    "mpnet_base": _mpnet(12, 768, 12),
    # arXiv:1910.01108, section 3: every second layer of BERT.
    "distilbert_base": bert(6, 768, 12, **_DISTIL),
    # arXiv:2003.10555, table 6: the discriminators.
    "electra_base": bert(12, 768, 12, **_ELECTRA),
    "electra_large": bert(24, 1024, 16, **_ELECTRA),
    "modernbert_base": _modernbert(22, 768, 12, 1152),
    "modernbert_large": _modernbert(28, 1024, 16, 2624),
}
