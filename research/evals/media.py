"""What a model answers to the pictures and sounds of held-out conversations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.data.loader import Window, heldout_batches
from research.data.media.mel import SILENCE
from research.evals.evaluation import Evaluation, Item, Opened, RunData
from research.models.config import ModelConfig
from research.models.model import Model, forward
from research.objectives.media_chat import MediaChat
from research.objectives.objective import Objective
from research.parallel.mesh import place_batch
from research.tree import Tree

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class MediaConfig:
    """`batches` of the held-out data are measured, 0 for all."""

    batches: int = 0

    def __post_init__(self):
        if self.batches < 0:
            raise ValueError(f"batches={self.batches} of the held-out data must not be negative")


@dataclass(frozen=True)
class Media(Evaluation):
    """Whether the likeliest answers to media are those of the data, token by token to their ends.

    exact     share of conversations of which every token that the assistant says is the likeliest
              after those before it, which is when greedy decoding writes just that
    shuffled  the same with the media of other conversations of the batch
    removed   the same with black pictures and silent sounds

    The last two are what the texts alone give away.
    """

    windows: Sequence[Window]
    objective: Objective
    batch_size: int
    batches: int = 0

    config = MediaConfig
    main = "exact"

    @classmethod
    def make(cls, config: MediaConfig, data: RunData) -> "Media":
        """ValueError for a run of another objective than media_chat."""
        objective = data.run_objective()
        if not isinstance(objective, MediaChat):
            raise ValueError(
                f"answers to media are those of a run of objective media_chat; this one has "
                f"{objective.name}"
            )
        return cls(data.windows, objective, data.batch_size, config.batches)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a conversation, as "row.segment" of the held-out rows, in their order."""
        c, first = opened.model.config, 0
        rows = heldout_batches(
            self.windows, self.objective.example, batch=self.batch_size, limit=self.batches or None
        )
        for batch in rows:
            forms = {"exact": batch, "shuffled": _shuffled(c, batch), "removed": _removed(batch)}
            said = {name: self._said(opened, form) for name, form in forms.items()}
            for row, segment in _conversations(batch):
                asked = (batch["segments"][row] == segment) & (batch["weights"][row] > 0)
                wanted = batch["targets"][row][asked]
                totals = {
                    name: (float(np.array_equal(ids[row][asked], wanted)), 1.0)
                    for name, ids in said.items()
                }
                texts = {"answer": wanted, "written": said["exact"][row][asked]}
                told = {name: _text(opened, ids) for name, ids in texts.items()}
                yield Item(f"{first + row}.{segment}", totals, told)
            first += self.batch_size

    def _said(self, opened: Opened, batch: Batch) -> np.ndarray:
        """The likeliest token after each one, int [B, T]."""
        mesh, fields = jax.sharding.get_mesh(), {**batch}
        if not mesh.empty:
            fields = place_batch(batch, mesh, opened.model.rules, self.batch_size)
        return np.asarray(_likeliest(opened.params, fields, model=opened.model))


@partial(jax.jit, static_argnames="model")
def _likeliest(params: Tree, batch: Batch, *, model: Model) -> jax.Array:
    return jnp.argmax(forward(model, params, batch), axis=-1)


def _conversations(batch: Batch) -> Iterator[tuple[int, int]]:
    """(row, segment) of every conversation with an answer."""
    for row, segments in enumerate(batch["segments"]):
        asked = segments[batch["weights"][row] > 0]
        yield from ((row, int(segment)) for segment in np.unique(asked))


def _shuffled(c: ModelConfig, batch: Batch) -> Batch:
    """The batch with each medium in the place of the one before it, over all rows."""
    turned = dict(batch)
    for name, of, each in (("images", c.image, c.image.frames), ("sounds", c.sound, 1)):
        if name not in batch:
            continue
        counts = np.sum(batch["inputs"] == of.token, axis=1) // of.tokens * each
        row, slot = np.nonzero(np.arange(batch[name].shape[1]) < counts[:, None])
        media = batch[name].copy()
        media[row, slot] = np.roll(batch[name][row, slot], 1, axis=0)
        turned[name] = media
    return turned


def _removed(batch: Batch) -> Batch:
    nothing = {"images": 0, "sounds": SILENCE}
    return {
        name: np.full_like(rows, nothing[name]) if name in nothing else rows
        for name, rows in batch.items()
    }


def _text(opened: Opened, ids: np.ndarray) -> str:
    return opened.tokenizer.decode(ids.tolist()) if opened.tokenizer else str(ids.tolist())
