"""Floating-point operations that a model needs, for model FLOP utilisation (arXiv:2204.02311,
appendix B).

A product of a weight with a token takes 2 for each element; so does a pair of a query and a key,
for each element of a head and each of attention's two products. Elementwise operations are not
counted.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from research import tree
from research.models.config import ModelConfig
from research.models.context import layer_windows
from research.models.model import Model


@dataclass(frozen=True)
class Texts:
    """What a step reads: `rows` of `length` tokens, of an encoder-decoder in its decoder and
    `encoder` in its encoder.

    `predicted` tokens of a row need logits: of masked LM the share that is masked, though the head
    may run over all of them. `pooled` says that the first token is classified instead. `virtual`
    tokens stand in front of every row.
    """

    rows: int
    length: int
    encoder: int = 0
    predicted: float = 0.0
    pooled: bool = False
    virtual: int = 0


def matmul_parameters(c: ModelConfig) -> int:
    """Weights that a token is multiplied with: the head counts once, tables that are only read do
    not, and of experts those that a token visits."""
    total = sum(_visited(path, spec, c) for path, spec in tree.paths(Model(c).specs()).items())
    return total + (c.vocab_size * c.d_model if c.tied else 0)


def train_flops_per_token(c: ModelConfig, sequence_length: int) -> float:
    """Forward and backward: 6 per weight, and 12 per layer, head element and visible key; a causal
    mask halves these.

    Tokens of an encoder-decoder are those of its decoder; its encoder is taken to read a text of
    the same length.
    """
    T, width = sequence_length, c.heads * c.head_size
    attention = 12 * width * _layer_pairs(c, T, T) / T
    if c.kind == "encoder_decoder":
        attention += 12 * width * T * (c.encoder_layers + c.layers)
    return 6 * matmul_parameters(c) + attention


def decode_flops(c: ModelConfig, rows: int, length: int) -> float:
    """Writing one token a row behind `length` tokens: 2 per weight, and 4 per layer, head element
    and key."""
    keys = sum(min(window or length, length) for window in layer_windows(c))
    if c.kind == "encoder_decoder":
        keys += c.layers * length
    return rows * (2 * matmul_parameters(c) + 4 * c.heads * c.head_size * keys)


def visible_pairs(T: int, S: int, *, causal: bool, window: int = 0) -> float:
    """Pairs of a query and a key that it sees, of T queries and S keys that end together; a row is
    one document."""
    most = window or S
    # The query at position t sees min(t, most) keys up to its own, and without a causal mask all
    # that follow.
    return _sum_to(S, most) - _sum_to(S - T, most) + (0 if causal else T * (T - 1) / 2)


def _layer_pairs(c: ModelConfig, T: int, S: int) -> float:
    """`visible_pairs` of all layers together."""
    causal = c.kind != "encoder"
    return sum(
        layers * visible_pairs(T, S, causal=causal, window=window)
        for window, layers in Counter(layer_windows(c)).items()
    )


def _sum_to(count: int, most: int) -> float:
    """The sum of min(t, most) over t from 1 to count."""
    rising = min(count, most)
    return rising * (rising + 1) / 2 + (count - rising) * most


def forward_flops(c: ModelConfig, trainable: tree.Tree, texts: Texts) -> float:
    """The forward pass of a step, where `trainable` are the specs of what is trained.

    Each weight times the tokens that it meets, of experts those that a token visits; attention over
    the pairs that the mask shows, where a row is one document; the head. Tables that are read,
    DoRA's norms and a prompt's own pass are left out.
    """
    return sum(_weights(c, trainable, texts).values()) + _attention(c, texts)


def model_flops(c: ModelConfig, trainable: tree.Tree, texts: Texts) -> float:
    """What a step has to compute: three times the forward, less the gradients of the weights that
    are frozen.

    A product is needed once forward and once for the gradient of its input, all the way down to the
    first layer, and once more for its weight's gradient where that is trained; both products of
    attention are needed for both their operands.
    """
    trained = {path for path in tree.paths(trainable)}
    products = _weights(c, trainable, texts)
    tied = "embed/table" in trained and c.tied
    return 3 * _attention(c, texts) + sum(
        flops * (3 if path in trained or (path == "head/tied" and tied) else 2)
        for path, flops in products.items()
    )


def _weights(c: ModelConfig, trainable: tree.Tree, texts: Texts) -> dict[str, float]:
    """Forward FLOPs of the products with weights, by path: the model's, and the adapters' that are
    trained beside them."""
    base = tree.paths(Model(c).specs())
    added = {
        path: spec
        for path, spec in tree.paths(trainable).items()
        if path not in base and _is_adapter(path)
    }
    weights = {path: _visited(path, spec, c) for path, spec in {**base, **added}.items()}
    if c.tied:
        weights["head/tied"] = c.vocab_size * c.d_model
    return {path: 2.0 * count * _tokens(path, texts) for path, count in weights.items() if count}


def _attention(c: ModelConfig, texts: Texts) -> float:
    """Forward FLOPs of scores and weighted sums over all rows and layers."""
    T, S, n = texts.length, texts.encoder, texts.virtual
    pairs = _layer_pairs(c, T, T + n)
    if c.kind == "encoder_decoder":
        pairs += c.encoder_layers * S * (S + n) + c.layers * T * S
    return 4.0 * c.heads * c.head_size * pairs * texts.rows


def _visited(path: str, spec: Any, c: ModelConfig) -> int:
    """Weights of a parameter that a token meets; 0 for what is no matrix, and for tables that are
    only read."""
    table = path.startswith("embed/") or path.endswith("relative/table")
    if table or "bias" in path or len([axis for axis in spec.axes if axis != "layers"]) < 2:
        return 0
    count = tree.count({"": spec})
    return count * c.experts_per_token // c.experts if "experts" in spec.axes else count


def _is_adapter(path: str) -> bool:
    """Whether a parameter beside the model's is a matrix: one of a low-rank pair, or of a
    bottleneck."""
    return path.endswith(("/a", "/b", "_adapter/down", "_adapter/up"))


def _tokens(path: str, texts: Texts) -> float:
    """Tokens of a step that meet a weight. Keys and values of cross-attention are those of the
    encoder's tokens."""
    part = path.split("/")[0]
    if part in ("pooler", "classifier"):
        return texts.rows if texts.pooled else 0
    if part == "head":
        return texts.rows * texts.predicted
    of_encoder = part == "encoder" or "/cross/key" in path or "/cross/value" in path
    return texts.rows * (texts.encoder if of_encoder else texts.length)
