"""What a changed model costs against the one it was made of: bits, perplexity, and how far its
predictions moved."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.evals.perplexity import Score
from research.models.model import Model, forward
from research.ops.loss import cross_entropy
from research.weights.matrices import LINEAR

_LOGITS = 2**25  # of a batch, 128 MiB in float32


@dataclass(frozen=True)
class Comparison:
    """A changed model against its original on held-out tokens.

    score                the changed model's own negative log-likelihood
    mean_kl, kl_99       mean and 99th percentile of KL(original || changed), in nats per token
    flip_rate            share of tokens at which the likeliest next token is another one
    mean_difference, largest_difference   of the absolute difference of logits
    kl_50, kl_95, kl_999, largest_kl      further percentiles of that KL, and its largest value
    rms_change           root of the mean squared change of a target's probability, 0 to 1
    """

    score: Score
    mean_kl: float
    kl_99: float
    flip_rate: float
    mean_difference: float
    largest_difference: float
    kl_50: float = 0.0
    kl_95: float = 0.0
    kl_999: float = 0.0
    largest_kl: float = 0.0
    rms_change: float = 0.0


def compare(
    model: Model,
    original: tree.Tree,
    changed: Mapping[str, tree.Tree],
    ids: np.ndarray,
    window: int,
    models: Mapping[str, Model] | None = None,
) -> tuple[Score, dict[str, Comparison]]:
    """(the original's score, the comparison of each changed model with it). A changed model of
    another shape has its `Model` in `models`.

    Predicts every id of [N] but the first from those before it in its window of `window` tokens;
    ids at the end that do not fill a window are left out.

    ValueError for ids that do not fill one, and for a model that is no decoder.
    """
    nll, tokens = 0.0, 0
    notes: dict[str, list[np.ndarray]] = {name: [] for name in changed}
    for batch, targets_BT in _windows(model, ids, window):
        # The original's logits are computed once and compared with every changed model while they
        # are on the device.
        logits_BTV = _logits(original, batch, model=model)
        nll += float(np.asarray(cross_entropy(logits_BTV, targets_BT)[1], np.float64).sum())
        tokens += targets_BT.size
        # Six numbers a token leave the device, since logits of a whole text would not fit.
        for name, params in changed.items():
            of = (models or {}).get(name, model)
            noted = _differences(logits_BTV, params, batch, targets_BT, model=of)
            notes[name].append(np.asarray(noted, np.float64).reshape(6, -1))
    comparisons = {}
    for name, batches in notes.items():
        nll_M, kl_M, flips_M, mean_M, largest_M, change_M = np.concatenate(batches, axis=1)
        # The tail, since a mean hides a few tokens that are badly off.
        kl_50, kl_95, kl_99, kl_999 = np.quantile(kl_M, (0.5, 0.95, 0.99, 0.999)).tolist()
        comparisons[name] = Comparison(
            Score(float(nll_M.sum()), tokens, None),
            float(kl_M.mean()),
            kl_99,
            float(flips_M.mean()),
            float(mean_M.mean()),
            float(largest_M.max()),
            kl_50,
            kl_95,
            kl_999,
            float(kl_M.max()),
            float(np.sqrt(np.mean(change_M**2))),
        )
    return Score(nll, tokens, None), comparisons


@dataclass(frozen=True)
class Size:
    """Bits of storage a weight, scales and adapters included: of the matrices of layers, and of all
    parameters."""

    linear: float
    whole: float


def size_of(params: tree.Tree, original: tree.Tree) -> Size:
    """Bits of `params` per element of `original`, whose arrays say how many weights there are."""
    counts = {path: math.prod(w.shape) for path, w in tree.paths(original).items()}
    linear = set(tree.match(LINEAR, counts))
    bits = {path: tree.nbits(leaf) for path, leaf in _weights(params, counts).items()}
    # Rules usually quantize matrices alone, so tables hide what a format costs.
    of_linear = sum(bits[path] for path in linear) / sum(counts[path] for path in linear)
    return Size(of_linear, tree.nbits(params) / sum(counts.values()))


def _weights(params: tree.Tree, paths: Mapping[str, int]) -> dict[str, tree.Tree]:
    """The nodes of `params` at these paths: arrays, or leaves such as `Quantized` with their
    adapters."""
    nodes = {}
    for path in paths:
        # By hand: `tree.paths` would descend into a leaf, to its codes and scales.
        node = params
        for name in path.split("/"):
            node = node[name]
        nodes[path] = node
    return nodes


def _windows(
    model: Model, ids: np.ndarray, window: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Batches of whole windows and the targets [B, T] of each."""
    count = (len(ids) - 1) // window
    if model.config.kind != "decoder":
        raise ValueError(
            f"the model is an {model.config.kind}, and only a decoder predicts a text from its past"
        )
    if not count:
        raise ValueError(
            f"{len(ids)} tokens do not fill a window of {window}; "
            "give more text or a shorter window"
        )
    # As many windows at once as their logits fit the bound, one at least.
    rows = max(1, min(count, _LOGITS // (window * model.config.vocab_size)))
    # Targets are the inputs one token later.
    inputs_NT, targets_NT = (
        np.asarray(ids[at : at + count * window], np.int32).reshape(count, window) for at in (0, 1)
    )
    positions_T = np.arange(window, dtype=np.int32)
    for at in range(0, count, rows):
        inputs = inputs_NT[at : at + rows]
        positions = np.broadcast_to(positions_T, inputs.shape)
        yield (
            {"inputs": inputs, "segments": np.ones_like(inputs), "positions": positions},
            targets_NT[at : at + rows],
        )


@partial(jax.jit, static_argnames="model")
def _logits(params: tree.Tree, batch: dict[str, jax.Array], *, model: Model) -> jax.Array:
    return forward(model, params, batch)


@partial(jax.jit, static_argnames="model")
def _differences(
    logits_BTV: jax.Array,
    params: tree.Tree,
    batch: dict[str, jax.Array],
    targets_BT: jax.Array,
    *,
    model: Model,
) -> jax.Array:
    """Six numbers for every token, float32 [6, B, T]: nats, KL, 1 if the likeliest token changed,
    mean and largest absolute difference of its logits, change of the target's probability."""
    other_BTV = _logits(params, batch, model=model)
    # KL(p || q) = sum p (log p - log q), in nats: what a code made for q loses on texts of p.
    p_BTV, q_BTV = jax.nn.log_softmax(logits_BTV), jax.nn.log_softmax(other_BTV)
    kl_BT = jnp.sum(jnp.exp(p_BTV) * (p_BTV - q_BTV), axis=-1)
    flips_BT = (jnp.argmax(logits_BTV, axis=-1) != jnp.argmax(other_BTV, axis=-1)).astype(
        jnp.float32
    )
    # Logits may differ by a constant without a change of any probability; this counts it all the
    # same, as a change of the numbers.
    off_BTV = jnp.abs(other_BTV - logits_BTV)
    nll_BT = cross_entropy(other_BTV, targets_BT)[1]
    change_BT = jnp.exp(-nll_BT) - jnp.exp(-cross_entropy(logits_BTV, targets_BT)[1])
    return jnp.stack([nll_BT, kl_BT, flips_BT, off_BTV.mean(-1), off_BTV.max(-1), change_BT])
