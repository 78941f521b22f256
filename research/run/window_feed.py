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

    The step, the seed and the batch size determine the position in the data, so `state()` is {}. A
    run that left out data is {"ahead": n} batches further than its step.
    `threads` read ahead of the devices.
    """

    windows: Sequence[Window]
    objective: Objective
    seed: int
    batch_size: int
    threads: int = 2
    part: tuple[int, int] = (0, 1)
    _batches: TrainBatches | None = field(default=None, init=False, repr=False)
    _ahead: int = field(default=0, init=False)

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Starts to read ahead from the batch of `step` on."""
        # A feed that begins again must not leave its former threads reading.
        self.close()
        self._ahead = state.get("ahead", 0)
        self._batches = train_batches(
            self.windows,
            self.objective.example,
            seed=self.seed,
            global_batch=self.batch_size,
            start_step=step + self._ahead,
            # Every process walks the same permutation of windows and takes its own rows of each
            # batch.
            part=self.part,
            threads=self.threads,
        )

    def __next__(self) -> tuple[int, Batch]:
        if self._batches is None:
            raise RuntimeError("a feed begins before it gives batches; call begin(step, state)")
        number, batch = next(self._batches)
        return number - self._ahead, batch

    def state(self) -> dict[str, Any]:
        """{} where the step alone is enough."""
        return {"ahead": self._ahead} if self._ahead else {}

    def close(self) -> None:
        """Ends the threads that read ahead."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None
