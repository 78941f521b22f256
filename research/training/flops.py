"""Floating-point operations (FLOPs) of a model, for model FLOP utilisation (arXiv:2204.02311,
appendix B).

Each weight takes 2 FLOPs for each token that it multiplies. Attention has two products, each with 2
FLOPs for every visible pair of a query and a key and every element of a head. Elementwise
operations are not counted.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from research import tree
from research.models.config import ModelConfig
from research.models.kinds import layer_windows
from research.models.latent import cached_size, value_size
from research.models.model import Model


@dataclass(frozen=True)
class Texts:
    """The sizes of the batch of a step.

    rows       number of rows
    length     tokens of a row; in an encoder-decoder those of the decoder
    encoder    tokens of a row that the encoder of an encoder-decoder reads
    predicted  tokens of a row that need logits; for masked LM the masked ones, although the head
               may run over all of them
    pooled     True if the first token of a row is classified instead
    virtual    virtual tokens before every row, from a prefix or a prompt
    """

    rows: int
    length: int
    encoder: int = 0
    predicted: float = 0.0
    pooled: bool = False
    virtual: int = 0


def matmul_parameters(c: ModelConfig) -> int:
    """Number of weights that multiply a token. The head counts, embedding tables do not, and of the
    experts only as many as a token visits."""
    # 2 N of the paper's 6 N is the forward pass, for N weights that multiply.
    total = sum(_visited(path, spec, c) for path, spec in tree.paths(Model(c).specs()).items())
    # A tied table is counted here, as the head that it also is.
    return total + (c.vocab_size * c.d_model if c.tied and not c.scores_texts else 0)


def train_flops_per_token(c: ModelConfig, sequence_length: int) -> float:
    """FLOPs of forward and backward pass for each token (arXiv:2204.02311, appendix B).

    These are 6 for each weight, and 12 for each layer, visible key and element of all heads. A
    causal mask hides half of the keys. Tokens of an encoder-decoder are those of its decoder; its
    encoder is assumed to read as many.
    """
    T, width = sequence_length, c.heads * (c.head_size + value_size(c)) / 2
    # 12: two products, 2 FLOPs for a multiplication with addition, and the backward pass takes
    # twice the forward one. Divided by T, because the pairs are those of a whole row.
    attention = 12 * width * _layer_pairs(c, T, T) / T
    if c.kind == "encoder_decoder":
        # The encoder's layers see all pairs, and so does the decoder's cross-attention.
        attention += 12 * width * T * (c.encoder_layers + c.layers)
    return 6 * matmul_parameters(c) + attention


def decode_flops(c: ModelConfig, rows: int, length: int) -> float:
    """FLOPs of decoding one more token in each of `rows` texts of `length` tokens.

    These are 2 for each weight, and 4 for each layer, visible key and element of all heads.
    """
    # With a cache one new token is one query against the keys so far, which a window bounds.
    keys = sum(min(window or length, length) for window in layer_windows(c))
    if c.kind == "encoder_decoder":
        keys += c.layers * length
    # Over a cache of latents all heads attend to these.
    wide = cached_size(c) + c.kv_latent if c.kv_latent else c.head_size + value_size(c)
    return rows * (2 * matmul_parameters(c) + 2 * c.heads * wide * keys)


def visible_pairs(T: int, S: int, *, causal: bool, window: int = 0) -> float:
    """Number of (query, visible key) pairs of a row that is one document.

    The T queries are the last T of S positions. `window` is the number of keys that a query sees at
    most on a side, itself included; 0 is no limit.

        visible_pairs(3, 3, causal=True)  # 1 + 2 + 3 = 6
    """
    most = window or S
    # The query at position t sees min(t, most) keys up to its own, and without a causal mask as
    # many that follow: the last sees none, the one before it one, and so on.
    after = 0 if causal else _sum_to(T - 1, most - 1)
    return _sum_to(S, most) - _sum_to(S - T, most) + after


def _layer_pairs(c: ModelConfig, T: int, S: int) -> float:
    """`visible_pairs` of all layers together."""
    causal = c.kind != "encoder"
    return sum(
        layers * visible_pairs(T, S, causal=causal, window=window)
        for window, layers in Counter(layer_windows(c)).items()
    )


def _sum_to(count: int, most: int) -> float:
    """The sum of min(t, most) over t from 1 to count."""
    # 1 + 2 + ... + rising, and from there on `most` for each.
    rising = min(count, most)
    return rising * (rising + 1) / 2 + (count - rising) * most


def forward_flops(c: ModelConfig, trainable: tree.Tree, texts: Texts) -> float:
    """FLOPs of the forward pass of a step; `trainable` are the specs of what is trained.

    Counted are each weight for every token that it multiplies (of experts those that a token
    visits), attention over the pairs that the mask shows if a row is one document, and the head.
    Not counted are look-ups in tables, DoRA's norms and the pass that computes a prompt.
    """
    return sum(_weights(c, trainable, texts).values()) + _attention(c, texts)


def model_flops(c: ModelConfig, trainable: tree.Tree, texts: Texts) -> float:
    """FLOPs that a step has to compute: three times the forward pass, without the gradients of
    frozen weights.

    A product with a weight is computed once forward, once for the gradient of its input, down to
    the first layer, and once for the gradient of the weight if it is trained. Both products of
    attention need the gradients of both operands.
    """
    # 2 of 3 parts for a frozen weight: forward, and the gradient of its input.
    trained = {path for path in tree.paths(trainable)}
    products = _weights(c, trainable, texts)
    # A tied table is one parameter with two uses: a look-up, not counted, and the head.
    tied = "embed/table" in trained and c.tied
    return 3 * _attention(c, texts) + sum(
        flops * (3 if path in trained or (path == "head/tied" and tied) else 2)
        for path, flops in products.items()
    )


def _weights(c: ModelConfig, trainable: tree.Tree, texts: Texts) -> dict[str, float]:
    """Forward FLOPs of the products with weights, by path: the model's, and the adapters' that are
    trained beside them."""
    base = tree.paths(Model(c).specs())
    # Adapters lie beside the weights they change, so their products come in addition.
    added = {
        path: spec
        for path, spec in tree.paths(trainable).items()
        if path not in base and _is_adapter(path)
    }
    weights = {path: _visited(path, spec, c) for path, spec in {**base, **added}.items()}
    if c.tied and not c.scores_texts:
        weights["head/tied"] = c.vocab_size * c.d_model
    return {path: 2.0 * count * _tokens(path, c, texts) for path, count in weights.items() if count}


def _attention(c: ModelConfig, texts: Texts) -> float:
    """Forward FLOPs of scores and weighted sums over all rows and layers."""
    T, S, n = texts.length, texts.encoder, texts.virtual
    # Virtual tokens come before the row and are visible to all its queries.
    pairs = _layer_pairs(c, T, T + n)
    if c.kind == "encoder_decoder":
        pairs += c.encoder_layers * S * (S + n) + c.layers * T * S
    return 2.0 * c.heads * (c.head_size + value_size(c)) * pairs * texts.rows


def _visited(path: str, spec: Any, c: ModelConfig) -> int:
    """Number of a parameter's weights that multiply a token; 0 for vectors and embedding tables."""
    # A look-up is no product. Vectors (biases, gains) have fewer than two axes of their own.
    table = path.startswith("embed/") or path.endswith("relative/table")
    if table or "bias" in path or len([axis for axis in spec.axes if axis != "layers"]) < 2:
        return 0
    # Each token visits k of E experts, hence the share of their weights.
    count = tree.count({"": spec})
    return count * c.experts_per_token // c.experts if "experts" in spec.axes else count


def _is_adapter(path: str) -> bool:
    """True for the matrices of adapters: of a low-rank pair, or of a bottleneck."""
    return path.endswith(("/a", "/b", "_adapter/down", "_adapter/up"))


def _tokens(path: str, c: ModelConfig, texts: Texts) -> float:
    """Number of tokens of a step that a weight multiplies. The key and value matrices of
    cross-attention multiply the encoder's tokens."""
    part = path.split("/")[0]
    # The transform of ModernBERT's head is its pooler too.
    shared = c.head_pools and texts.pooled and path == "head/kernel"
    if part in ("pooler", "classifier") or shared:
        each = 1 if c.labels_over == "text" else texts.length
        return texts.rows * each if texts.pooled else 0
    if part == "head":
        return texts.rows * texts.predicted
    # Cross-attention makes its keys and values from the encoder's states.
    of_encoder = part == "encoder" or "/cross/key" in path or "/cross/value" in path
    return texts.rows * (texts.encoder if of_encoder else texts.length)
