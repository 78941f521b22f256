"""The feed that reads windows of a corpus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research.data.loader import Batch, TrainBatches, Window, train_batches
from research.objectives.objective import Objective
from research.run.feed import Feed


@dataclass
class WindowFeed(Feed):
    """Batches of `batch_size` rows over all processes; each row is the example that the objective
    makes of one window of tokens. Of its rows the feed reads `part`, (index, count), see
    `research.parallel.mesh.row_part`.

    The step, the seed and the batch size determine the position in the data, so `state()` is {}.
    `threads` read ahead of the devices.
    """

    windows: Sequence[Window]
    objective: Objective
    seed: int
    batch_size: int
    threads: int = 2
    part: tuple[int, int] = (0, 1)
    _batches: TrainBatches | None = field(default=None, init=False, repr=False)

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Starts to read ahead from `step` on."""
        # A feed that begins again must not leave its former threads reading.
        self.close()
        self._batches = train_batches(
            self.windows,
            self.objective.example,
            seed=self.seed,
            global_batch=self.batch_size,
            start_step=step,
            # Every process walks the same permutation of windows and takes its own rows of each
            # batch.
            part=self.part,
            threads=self.threads,
        )

    def __next__(self) -> tuple[int, Batch]:
        if self._batches is None:
            raise RuntimeError("a feed begins before it gives batches; call begin(step, state)")
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        """{}: the step alone is enough."""
        return {}

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None
