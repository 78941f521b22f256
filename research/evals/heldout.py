"""A run's own loss on the data that it held out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from research.data.batch import check_documents
from research.data.corpus import Corpus
from research.data.loader import Window, heldout_batches
from research.evals.evaluation import Evaluation, Item, Opened, RunData, Totals
from research.objectives.objective import Objective
from research.parallel.mesh import place_batch, row_part
from research.training.step import eval_step


@dataclass(frozen=True)
class HeldOutConfig:
    """`batches` of the held-out data are measured, 0 for all."""

    batches: int = 0

    def __post_init__(self):
        if self.batches < 0:
            raise ValueError(f"batches={self.batches} of the held-out data must not be negative")


@dataclass(frozen=True)
class HeldOut(Evaluation):
    """How well a run's model predicts its held-out data.

    loss            mean negative log-likelihood in nats per target (a token; of classification a
                    text): without label smoothing, z-loss and losses of layers, so that runs that
                    train with them compare with others. Of an objective that has no likelihood,
                    such as a preference, its own loss
    objective       the mean of what is trained on, where that differs
    bits_per_byte   where the loss covers every token (`Objective.bits_per_byte`), beside
                    gzip_bits_per_byte; a part of the data is taken to have the bytes per token of
                    all

    and what the objective reports, such as accuracy.
    """

    objective: Objective
    windows: Sequence[Window]
    batch_size: int
    corpus: Corpus | None = None
    batches: int = 0

    config = HeldOutConfig
    main = "loss"
    lower_is_better = True

    @classmethod
    def make(cls, config: HeldOutConfig, data: RunData) -> "HeldOut":
        """All of a run's held-out windows, or the first `batches`."""
        objective = data.run_objective()
        return cls(objective, data.windows, data.batch_size, data.corpus, config.batches)

    def items(self, opened: Opened) -> Iterator[Item]:
        """An item a batch, since a step adds up all that it computes: sums in nats and counts in
        tokens, "loss" and the further totals of the objective."""
        # The caller's mesh decides: none on a single device, where arrays need no placing.
        mesh, rules = jax.sharding.get_mesh(), opened.model.rules
        batches = heldout_batches(
            self.windows,
            self.objective.example,
            batch=self.batch_size,
            limit=self.batches or None,
            part=(0, 1) if mesh.empty else row_part(mesh, rules, self.batch_size),
        )
        for number, batch in enumerate(batches):
            check_documents(batch, opened.model.execution.documents)
            # Each process has read its own rows; on a mesh they become one array over all devices.
            inputs: dict[str, Any] = batch
            if not mesh.empty:
                inputs = place_batch(batch, mesh, rules, self.batch_size)
            sums = _sums(
                opened.params,
                # No base apart: what a run trains is attached to it already in `params`.
                {"base": {}, **opened.held},
                inputs,
                model=opened.model,
                objective=self.objective,
            )
            # Fetched one by one: independent programs in flight could meet their collectives in
            # another order elsewhere.
            totals = {
                name: (float(total), float(count))
                for name, (total, count) in jax.device_get(sums).items()
            }
            yield Item(f"batch {number}", totals)

    def values(self, totals: Totals) -> dict[str, float]:
        """The values by name, as the class describes them."""
        # "nll" is a total for bits per byte and no number of its own: with plain settings it is
        # the loss.
        reported = ("loss", *self.objective.reports)
        values = super().values({name: totals[name] for name in reported if name in totals})
        if "nll" in totals:
            trained, (nats, count) = values["loss"], totals["nll"]
            values["loss"] = nats / max(count, 1.0)
            if not math.isclose(trained, values["loss"], rel_tol=1e-5):
                values["objective"] = trained
        if self.objective.bits_per_byte and self.corpus is not None:
            # nats/token -> bits/token -> bits/byte, with the held-out text's tokens per byte.
            nats, count = totals["nll"]
            size, tokens = self.corpus.heldout_size()
            values["bits_per_byte"] = nats / count / math.log(2) * tokens / size
            values["gzip_bits_per_byte"] = self.corpus.provenance["gzip_bits_per_byte"]
        return values


# Compiled at module level, once for all evaluations of a process with one model and objective.
_sums = jax.jit(eval_step, static_argnames=("model", "objective"))
