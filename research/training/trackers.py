"""Trackers: TensorBoard through event files, and Weights & Biases (W&B) through its own client."""

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.files import write_text

# (write the values of a step, close)
Tracker = tuple[Callable[[int, dict[str, float]], None], Callable[[], None]]


def open_tensorboard(folder: Path, start_step: int) -> Tracker:
    """A tracker that writes event files for TensorBoard to `folder`. Values that an earlier process
    wrote after `start_step` are hidden from TensorBoard."""
    from tensorboardX import SummaryWriter

    # Without a suffix two processes that start within a second share one file, and the second
    # empties it.
    writer = SummaryWriter(
        str(folder),
        purge_step=start_step + 1,
        flush_secs=10,
        filename_suffix=f".{os.getpid()}.{secrets.token_hex(2)}",
    )

    def _write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return _write, writer.close


def open_wandb(workdir: Path, config: Mapping[str, Any] | None) -> Tracker:
    """A tracker that logs to a W&B run named after the folder; a resumed run goes on in the same
    W&B run. ValueError if the package is missing."""
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "W&B logging is on and its package is missing; pip install wandb, or turn it off"
        ) from None
    identity = workdir / "wandb" / "run_id"
    if not identity.exists():
        # The identity is kept in the run directory, since W&B would give a resumed run a new one.
        identity.parent.mkdir(exist_ok=True)
        write_text(identity, secrets.token_hex(8))
    run = wandb.init(
        dir=str(workdir),
        name=workdir.name,
        id=identity.read_text(),
        resume="allow",
        config=dict(config or {}),
    )
    return lambda step, values: run.log(values, step=step), run.finish
