"""A run's own loss on the data that it held out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from research.data.corpus import Corpus
from research.data.loader import Window, heldout_batches
from research.evals.evaluation import Evaluation, Opened, RunData, Totals
from research.objectives.objective import Objective
from research.parallel.mesh import place_batch
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
    """The mean loss of a run's objective in nats per token, with what the objective reports beside
    it, such as accuracy.

    Where the loss covers every token of the text (`Objective.bits_per_byte`), bits per byte too,
    beside those of gzip. For a part of the data they take its bytes per token to be those of all.
    """

    objective: Objective
    windows: Sequence[Window]
    batch_size: int
    corpus: Corpus | None = None
    batches: int = 0

    config = HeldOutConfig

    @classmethod
    def make(cls, config: HeldOutConfig, data: RunData) -> "HeldOut":
        """All of a run's held-out windows, or the first `batches`."""
        return cls(data.objective, data.windows, data.batch_size, data.corpus, config.batches)

    def run(self, opened: Opened) -> Totals:
        """Sums in nats and counts in tokens: "loss", and the further totals of the objective."""
        totals: Totals = {}
        batches = heldout_batches(
            self.windows,
            self.objective.example,
            batch=self.batch_size,
            limit=self.batches or None,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        mesh = jax.sharding.get_mesh()
        for batch in batches:
            # Each process has read its own rows; on a mesh they become one array over all devices.
            inputs: dict[str, Any] = batch
            if not mesh.empty:
                inputs = place_batch(batch, mesh, opened.model.rules, self.batch_size)
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
            for name, (total, count) in jax.device_get(sums).items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = (before[0] + float(total), before[1] + float(count))
        return totals

    def values(self, totals: Totals) -> dict[str, float]:
        """The mean loss and what the objective reports; for plain text bits per byte."""
        reported = ("loss", *self.objective.reports)
        values = super().values({name: totals[name] for name in reported if name in totals})
        if self.objective.bits_per_byte and self.corpus is not None:
            # nats/token -> bits/token -> bits/byte, with the held-out text's tokens per byte.
            nats, count = totals["nll"]
            size, tokens = self.corpus.heldout_size()
            values["bits_per_byte"] = nats / count / math.log(2) * tokens / size
            values["gzip_bits_per_byte"] = self.corpus.provenance["gzip_bits_per_byte"]
        return values


_sums = jax.jit(eval_step, static_argnames=("model", "objective"))
