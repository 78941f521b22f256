"""Encoders: BERT and those after it with its layers, RoBERTa and XLM-R."""

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


PRESETS: dict[str, ModelConfig] = {
    "bert_base": bert(12, 768, 12),
    "bert_large": bert(24, 1024, 16),
    "roberta_base": _roberta(12, 768, 12),
    "roberta_large": _roberta(24, 1024, 16),
    "xlm_roberta_base": _roberta(12, 768, 12, 250002),
    "xlm_roberta_large": _roberta(24, 1024, 16, 250002),
}
