"""The check of a command's --workdir and --checkpoint; does not import JAX, so errors are fast."""

from pathlib import Path


def check_source(
    workdir: str | Path | None, checkpoint: str | Path | None, adapter: str = ""
) -> None:
    """ValueError unless exactly one of `workdir`, of a run, and `checkpoint` is given. An `adapter`
    needs a checkpoint, because a run has its own."""
    if bool(workdir) == bool(checkpoint):
        raise ValueError(
            "give --workdir=FOLDER, the directory of a run such as runs/quickstart, "
            "or --checkpoint=CHECKPOINT"
        )
    if adapter and not checkpoint:
        raise ValueError(
            "--adapter wants the --checkpoint that it is for; a run has its own adapters"
        )
