"""Retrieval between pictures and their texts by the vectors of a contrastive run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from research.data.loader import Window, heldout_batches
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.models.model import Model
from research.models.pair_vectors import vectors
from research.objectives.contrastive import Contrastive
from research.objectives.objective import Objective
from research.parallel.mesh import place_batch
from research.tree import Tree


@dataclass(frozen=True)
class PicturesConfig:
    """among  candidates of each query: its own and others that are drawn by `seed`
    k      recall is computed among so many nearest candidates
    seed   of the draw
    """

    among: int = 100
    k: tuple[int, ...] = (1, 5, 10)
    seed: int = 0

    def __post_init__(self):
        if self.among < 2:
            raise ValueError(f"among={self.among} candidates must be at least 2")
        if not self.k or min(self.k) < 1:
            raise ValueError(f"k={self.k} must be positive")


@dataclass(frozen=True)
class Pictures(Evaluation):
    """Whether the text of a held-out picture is the nearest among some, and the picture that of its
    text. Chance is k / among.

    image_to_text@k, text_to_image@k  recall among the k nearest
    shuffled@k                        image to text with the picture of another record
    removed@k                         image to text with a black picture

    The last two stand at chance where the numbers before them come from the pictures.
    """

    windows: Sequence[Window]
    objective: Objective
    batch_size: int
    settings: PicturesConfig = PicturesConfig()
    asked: tuple[int, ...] = ()  # the records that are queries, by number; () for all

    config = PicturesConfig
    main = "image_to_text@1"

    @classmethod
    def make(cls, config: PicturesConfig, data: RunData) -> "Pictures":
        """ValueError for a run of another objective than contrastive."""
        objective = data.run_objective()
        if not isinstance(objective, Contrastive):
            raise ValueError(
                f"pictures are compared with texts by a run of objective contrastive; this one has "
                f"{objective.name}"
            )
        return cls(data.windows, objective, data.batch_size, config)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a picture of the held-out data, in their order."""
        images, texts, black, whole, tokens = self._vectors(opened)
        kept = np.flatnonzero(whole)
        c = self.settings
        # A picture of another record for each: a turn of all by one.
        others = dict(zip(kept.tolist(), np.roll(kept, 1).tolist()))
        for own in self.asked or kept.tolist():
            # A generator for each: a part of the records has the same candidates.
            rng = np.random.default_rng([c.seed, own])
            # Equal texts are no wrong answers.
            wrong = [n for n in kept.tolist() if tokens[n] != tokens[own]]
            drawn = rng.permutation(wrong)[: c.among - 1].astype(np.int64)
            pairs = {
                "image_to_text": (images[own], texts),
                "text_to_image": (texts[own], images),
                "shuffled": (images[others[own]], texts),
                "removed": (black, texts),
            }
            totals: Totals = {}
            for name, (query, keys) in pairs.items():
                # Candidates that score as high as its own stand in front: no credit for a draw.
                rank = 1 + int(np.sum(keys[drawn] @ query >= keys[own] @ query))
                totals |= {f"{name}@{k}": (float(rank <= k), 1.0) for k in c.k}
            yield Item(str(own), totals)

    def _vectors(self, opened: Opened) -> tuple[Any, ...]:
        """(of pictures [N, D], of texts [N, D], of a black picture [D], whether each could be read
        [N], each text's tokens)."""
        found: list[tuple[np.ndarray, ...]] = []
        texts: list[tuple[int, ...]] = []
        black = np.zeros(0, np.float32)
        batches = heldout_batches(self.windows, self.objective.example, batch=self.batch_size)
        for batch in batches:
            weights = batch["weights"][:, 0] > 0
            texts += [tuple(row) for row in batch["inputs"].tolist()]
            removed = {**batch, "images": np.zeros_like(batch["images"])}
            one, other = (
                _compared(opened.params, self._placed(x, opened.model), model=opened.model)
                for x in (batch, removed)
            )
            found.append((np.asarray(one[0]), np.asarray(one[1]), weights))
            black = np.asarray(other[0])[0]
        images_ND, texts_ND, whole_N = (np.concatenate(parts) for parts in zip(*found))
        return images_ND, texts_ND, black, whole_N, texts

    def _placed(self, batch: dict[str, np.ndarray], model: Model) -> dict[str, jax.Array]:
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            return {name: jax.numpy.asarray(rows) for name, rows in batch.items()}
        return place_batch(batch, mesh, model.rules, self.batch_size)


@partial(jax.jit, static_argnames="model")
def _compared(params: Tree, batch: dict[str, jax.Array], *, model: Model) -> tuple:
    return vectors(model, params, batch)
