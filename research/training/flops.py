"""Floating-point operations that a model needs, for model FLOP utilisation (arXiv:2204.02311, appendix B)."""

from research import tree
from research.models.config import ModelConfig
from research.models.model import Model


def matmul_parameters(c: ModelConfig) -> int:
    """Weights that a token is multiplied with: the head counts once, tables that are only read do not, and of experts
    those that a token visits."""
    specs = tree.paths(Model(c).specs())
    total = 0
    for path, spec in specs.items():
        count = tree.count({"": spec})
        if path.startswith("embed/") or len([axis for axis in spec.axes if axis != "layers"]) < 2 or "bias" in path:
            continue
        total += count * c.experts_per_token // c.experts if "experts" in spec.axes else count
    return total + (c.vocab_size * c.d_model if c.tied else 0)


def train_flops_per_token(c: ModelConfig, sequence_length: int) -> float:
    """Forward and backward: 6 per weight, and 12 per layer, head element and visible key; a causal mask halves these.

    Tokens of an encoder-decoder are those of its decoder; its encoder is taken to read a text of the same length.
    """
    causal = c.kind != "encoder"
    seen = min(c.window, sequence_length) if c.window else sequence_length
    # Mean keys per query under a causal mask and a window w: w - w (w - 1) / 2T, about T / 2 without a window.
    keys = seen - seen * (seen - 1) / (2 * sequence_length) if causal else seen
    width = c.heads * c.head_size
    attention = 12 * c.layers * width * keys
    if c.kind == "encoder_decoder":
        attention += 12 * width * sequence_length * (c.encoder_layers + c.layers)
    return 6 * matmul_parameters(c) + attention
