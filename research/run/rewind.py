"""Going back to the newest checkpoint, and past the data of the steps since."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from research import command
from research.run.saving import remedy
from research.run.session import Session
from research.training.metrics import RunLog

# Times that a run goes back to one and the same step.
_TIMES = 3


class Rewind(Exception):
    """Raised by a loop whose run is to go on from its newest checkpoint, with the batch that step
    `position` would have in a run that never went back."""

    def __init__(self, position: int):
        super().__init__(position)
        self.position = position


def end_of_skipping(session: Session, log: RunLog, step: int, values: Mapping[str, float]) -> None:
    """Ends the loop, after `step` steps, of a run that has left out too many updates in a row:
    `Rewind` or `command.Stop`, as `config.skip.then` says."""
    said = f"{values['skipped_in_row']:.0f} updates up to step {step:,} were left out in a row"
    if session.experiment.skip.then == "rewind":
        log.note(f"{said}; the run goes back to its newest checkpoint, and past their batches")
        raise Rewind(step + session.feed_state.get("ahead", 0))
    raise command.Stop(
        command.BUG,
        f"{said}; the last checkpoint is from step {session.checkpoints.latest()}; "
        f"{remedy(session.experiment)}, or set config.skip.then=rewind",
    )


def rewound(session: Session, rewind: Rewind | None, times: Counter[int]) -> Session:
    """The session, which has not begun, at the data that `rewind` asks for. `times` counts how
    often the run went back to a step; `command.Stop` where that is no help."""
    if rewind is None:
        return session
    start = session.start_step
    times[start] += 1
    if times[start] > _TIMES:
        raise command.Stop(
            command.BUG,
            f"the run went back to step {start:,} {_TIMES} times, each time past other data, and "
            f"updates are left out all the same; {remedy(session.experiment)}",
        )
    return replace(session, feed_state={**session.feed_state, "ahead": rewind.position - start})
