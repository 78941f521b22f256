"""BERT."""

from research.models.config import ModelConfig


def _bert(layers: int, d_model: int, heads: int) -> ModelConfig:
    """BERT (arXiv:1810.04805), with the vocabulary of the uncased models: post-norm encoder, token
    types, pooler, masked-LM head."""
    return ModelConfig(
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


PRESETS: dict[str, ModelConfig] = {
    "bert_base": _bert(12, 768, 12),
    "bert_large": _bert(24, 1024, 16),
}
