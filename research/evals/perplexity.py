"""How well a causal model predicts a text: the sum of its tokens' negative log-likelihoods, in
nats."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from research.data.tokenizers import Tokenizer
from research.models.model import Model, forward
from research.ops.loss import cross_entropy
from research.parallel.axes import parts
from research.parallel.mesh import batch_sharding
from research.tree import Tree

_LOGITS = 2**25  # of a batch, 128 MiB in float32


@dataclass(frozen=True)
class Score:
    """`nll` nats in all for `tokens` predicted tokens, which spell `n_bytes` bytes of UTF-8 (None
    where no text is known)."""

    nll: float
    tokens: int
    n_bytes: int | None

    @property
    def nll_per_token(self) -> float:
        """Mean nats of a token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the nats per token; infinite beyond the range of floats."""
        # exp(709.78) is the largest float64.
        return math.exp(self.nll_per_token) if self.nll_per_token < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits to code a byte of the text, with which models of different tokenizers compare."""
        return self.nll / math.log(2) / self.n_bytes if self.n_bytes else None


def score_text(
    model: Model,
    params: Tree,
    tokenizer: Tokenizer,
    text: str,
    window: int,
    stride: int | None = None,
) -> Score:
    """The score of every token of a text. The first follows the token that begins a text, or for a
    tokenizer without one the token that ends a text. ValueError for an empty text."""
    ids = text_ids(tokenizer, text)
    nll = score_ids(model, params, ids, window, stride).nll
    return Score(nll, len(ids) - 1, len(text.encode()))


def text_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text behind the one that it follows, int32 [N]. ValueError for an empty text."""
    if not text:
        raise ValueError("the text is empty; give one with at least a character")
    # As in training, where a document follows the token that begins it or ends the one before.
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return np.array([first, *tokenizer.encode(text)], np.int32)


def score_ids(
    model: Model, params: Tree, ids: np.ndarray, window: int, stride: int | None = None
) -> Score:
    """Every id but the first, [N], given those before it in a window of `window` tokens.

    A window starts every `stride` tokens (None: every `window`) and scores the tokens that no
    earlier window has, so each counts once. A shorter stride gives more tokens a long context and
    costs more computation. ValueError for ids outside the vocabulary, and for windows that are
    longer than the model's positions.
    """
    # Summed on the host in float64: a float32 sum over a book would lose digits.
    total = 0.0
    for nll_BT, _ in _scored(model, params, ids, window, stride):
        total += float(nll_BT.sum())
    return Score(total, len(ids) - 1, None)


def score_windows(
    model: Model, params: Tree, ids: np.ndarray, window: int, stride: int | None = None
) -> Iterator[Score]:
    """The same as `score_ids`, of each window in order."""
    for nll_BT, counted_BT in _scored(model, params, ids, window, stride):
        for nll_T, counted_T in zip(nll_BT, counted_BT):
            if counted_T.any():  # else a row that fills the batch
                yield Score(float(nll_T.sum()), int(counted_T.sum()), None)


def _scored(
    model: Model, params: Tree, ids: np.ndarray, window: int, stride: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(nats float64 [B, T], whether the token counts bool [B, T]) of batches of windows."""
    stride = window if stride is None else stride
    _check(model, ids, window, stride)
    mesh = jax.sharding.get_mesh()
    # As many windows at once as the logits' memory allows, and no more than there are.
    rows = max(
        1, min(16, _LOGITS // (window * model.config.vocab_size), -(-(len(ids) - 1) // stride))
    )
    rows = rows if mesh.empty else whole_rows(rows, mesh, model)
    for batch in _batches(ids, window, stride, rows):
        inputs = batch if mesh.empty else place_whole(batch, mesh, model)
        yield np.asarray(_nll(params, inputs, model=model), np.float64), batch["counted"]


def whole_rows(rows: int, mesh: Mesh, model: Model) -> int:
    """The least number of rows, at least `rows`, that the devices can split between them."""
    split = parts("batch", mesh, model.rules)
    return -(-rows // split) * split


def place_whole(batch: dict[str, np.ndarray], mesh: Mesh, model: Model) -> dict[str, jax.Array]:
    """A batch that every process has whole, split over the mesh."""
    return {
        name: jax.device_put(rows, batch_sharding(rows.shape, mesh, model.rules))
        for name, rows in batch.items()
    }


@partial(jax.jit, static_argnames="model")
def _nll(params: Tree, batch: dict[str, jax.Array], *, model: Model) -> jax.Array:
    """Nats of each counted token, float32 [B, T], 0 elsewhere."""
    fields = {name: batch[name] for name in ("inputs", "segments", "positions")}
    _, nll_BT = cross_entropy(forward(model, params, fields), batch["targets"])
    # Masked and not multiplied: a padded position may have an infinite value.
    counted_BT = jnp.where(batch["counted"], nll_BT, 0)
    mesh = jax.sharding.get_abstract_mesh()
    # Whole on every device, so that every process can read all of it.
    return counted_BT if mesh.empty else jax.reshard(counted_BT, PartitionSpec())


def _batches(
    ids: np.ndarray, window: int, stride: int, rows: int
) -> Iterator[dict[str, np.ndarray]]:
    """Windows in order, `rows` at a time; rows without a window, and columns past the text, are
    padding."""
    # Windows start until one reaches the last target; the first may be the only one.
    starts = list(range(0, max(len(ids) - 1 - (window - stride), 1), stride))
    # Positions start anew in each window, which is all of the text that the model sees.
    positions = np.tile(np.arange(window, dtype=np.int32), (rows, 1))
    for first in range(0, len(starts), rows):
        # Segment 0 is padding, so what is not filled below neither is seen nor counts.
        inputs, targets, segments = np.zeros((3, rows, window), np.int32)
        counted = np.zeros((rows, window), bool)
        for row, start in enumerate(starts[first : first + rows]):
            # The last window may be short: there is one target less than ids.
            size = min(window, len(ids) - 1 - start)
            inputs[row, :size], targets[row, :size] = (
                ids[start : start + size],
                ids[start + 1 : start + size + 1],
            )
            segments[row, :size] = 1
            # A later window's first tokens are context: the window before has scored them.
            counted[row, (window - stride if start else 0) : size] = True
        yield {
            "inputs": inputs,
            "targets": targets,
            "segments": segments,
            "positions": positions,
            "counted": counted,
        }


def _check(model: Model, ids: np.ndarray, window: int, stride: int) -> None:
    c = model.config
    if c.kind != "decoder":
        raise ValueError(
            f"the model is an {c.kind}, and only a decoder predicts a text from its past"
        )
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) < 2:
        raise ValueError(
            f"ids are {ids.dtype} of shape {ids.shape}; "
            "wanted two or more integers in one dimension"
        )
    if ids.min() < 0 or ids.max() >= c.vocab_size:
        raise ValueError(
            f"ids lie in {ids.min()}..{ids.max()}; the model's are 0..{c.vocab_size - 1}"
        )
    if not 1 <= stride <= window:
        raise ValueError(f"window={window} must be positive, and stride={stride} in 1..{window}")
    if c.position == "learned" and window > c.max_length:
        raise ValueError(
            f"window={window} is over the model's {c.max_length} positions; "
            "set a window of at most that"
        )
