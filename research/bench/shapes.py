"""The two model shapes of the training benchmark, of equal matrix work."""

from research.models.config import ModelConfig

BATCH, LENGTH = 16, 256
PRODUCT_SIDE = 2048  # of the square product that stands for the machine's rate
# A gated layer has three matrices and a plain one two, so hidden widths of 1,024 and 1,536 make
# equal products.
_SIZES = dict(
    vocab_size=8192, layers=6, d_model=384, heads=6, kv_heads=6, head_size=64, max_length=LENGTH
)

SHAPES = {
    "llama": ModelConfig(**_SIZES, d_ff=1024, norm_eps=1e-6),
    "gpt2": ModelConfig(
        **_SIZES, d_ff=1536, position="learned", norm="layer", activation="gelu_tanh", gated=False,
        attention_bias="all", mlp_bias=True, tied=True,
    ),
}  # fmt: skip
