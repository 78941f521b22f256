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
    """A changed model on held-out tokens. KL(original || changed) in nats a token: its mean, and
    what 99% stay below; `flip_rate` is the share of places where another token is the likeliest.
    Logits differ by `mean_difference` on average and by `largest_difference` at most."""

    score: Score
    mean_kl: float
    kl_99: float
    flip_rate: float
    mean_difference: float
    largest_difference: float


def compare(
    model: Model,
    original: tree.Tree,
    changed: Mapping[str, tree.Tree],
    ids: np.ndarray,
    window: int,
) -> tuple[Score, dict[str, Comparison]]:
    """(the original's score, the comparison of each changed model with it).

    Predicts every id of [N] but the first from those before it in its window of `window` tokens;
    ids at the end that do not fill a window are left out.

    ValueError for ids that do not fill one, and for a model that is no decoder.
    """
    nll, tokens = 0.0, 0
    notes: dict[str, list[np.ndarray]] = {name: [] for name in changed}
    for batch, targets_BT in _windows(model, ids, window):
        logits_BTV = _logits(original, batch, model=model)
        nll += float(np.asarray(cross_entropy(logits_BTV, targets_BT)[1], np.float64).sum())
        tokens += targets_BT.size
        for name, params in changed.items():
            noted = _differences(logits_BTV, params, batch, targets_BT, model=model)
            notes[name].append(np.asarray(noted, np.float64).reshape(5, -1))
    made = {}
    for name, parts in notes.items():
        nll_M, kl_M, flips_M, mean_M, largest_M = np.concatenate(parts, axis=1)
        made[name] = Comparison(
            Score(float(nll_M.sum()), tokens, None),
            float(kl_M.mean()),
            float(np.quantile(kl_M, 0.99)),
            float(flips_M.mean()),
            float(mean_M.mean()),
            float(largest_M.max()),
        )
    return Score(nll, tokens, None), made


@dataclass(frozen=True)
class Size:
    """Bits of storage a weight, scales and adapters included: of the matrices of layers, and of all
    parameters."""

    linear: float
    whole: float


def size_of(params: tree.Tree, original: tree.Tree) -> Size:
    """Bits of parameters by those of the original, whose elements are counted."""
    counts = {path: math.prod(w.shape) for path, w in tree.paths(original).items()}
    linear = set(tree.match(LINEAR, counts))
    bits = {path: tree.nbits(leaf) for path, leaf in _weights(params, counts).items()}
    of_linear = sum(bits[path] for path in linear) / sum(counts[path] for path in linear)
    return Size(of_linear, tree.nbits(params) / sum(counts.values()))


def _weights(params: tree.Tree, paths: Mapping[str, int]) -> dict[str, tree.Tree]:
    """What stands at these paths, whatever kind of leaf it is."""
    made = {}
    for path in paths:
        node = params
        for name in path.split("/"):
            node = node[name]
        made[path] = node
    return made


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
    rows = max(1, min(count, _LOGITS // (window * model.config.vocab_size)))
    cut = (
        np.asarray(ids[at : at + count * window], np.int32).reshape(count, window) for at in (0, 1)
    )
    inputs_NT, targets_NT = cut
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
    """Of every place: nats, KL, whether the likeliest token changed, mean and largest difference of
    a logit; float32 [5, B, T]."""
    other_BTV = _logits(params, batch, model=model)
    p_BTV, q_BTV = jax.nn.log_softmax(logits_BTV), jax.nn.log_softmax(other_BTV)
    kl_BT = jnp.sum(jnp.exp(p_BTV) * (p_BTV - q_BTV), axis=-1)
    flips_BT = (jnp.argmax(logits_BTV, axis=-1) != jnp.argmax(other_BTV, axis=-1)).astype(
        jnp.float32
    )
    off_BTV = jnp.abs(other_BTV - logits_BTV)
    nll_BT = cross_entropy(other_BTV, targets_BT)[1]
    return jnp.stack([nll_BT, kl_BT, flips_BT, off_BTV.mean(-1), off_BTV.max(-1)])
