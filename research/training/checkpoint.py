"""Checkpoints of a run: saved asynchronously, verified bit by bit, restored onto any mesh.

`<directory>/<step>/` is committed by a rename, so a killed process leaves no half-written step.
Restoring detects a step that was damaged later, renames it to `damaged-<step>`, and uses the one
before.
"""

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from research import tree
from research.training.literal_path import LiteralPath
from research.training.restore import (
    Restored,
    committed_steps,
    make_record,
    newest,
    newest_meta,
    storable,
)


@dataclass(frozen=True)
class CheckpointConfig:
    """How often to save and which checkpoints to keep.

    every        number of steps between two checkpoints
    keep         number of latest checkpoints to keep
    keep_period  keep every checkpoint whose step is a multiple of this; None keeps none for good
    """

    every: int = 1000
    keep: int = 2
    keep_period: int | None = None

    def __post_init__(self):
        for field in ("every", "keep", "keep_period"):
            value = getattr(self, field)
            if (value is not None or field != "keep_period") and (
                type(value) is not int or value < 1
            ):
                raise ValueError(f"checkpoint.{field}={value!r} must be an integer of at least 1")


class Checkpoints:
    """The checkpoints of one run, as a context manager that waits for the last save on exit.

        with Checkpoints(workdir / "checkpoints", CheckpointConfig(every=100)) as checkpoints:
            restored = checkpoints.restore(abstract_state)
            checkpoints.save(step, state, meta={})

    Opening removes the remains of interrupted saves, so only one run may write to a directory.
    ValueError for a directory that cannot be written.
    """

    def __init__(self, directory: epath.PathLike, config: CheckpointConfig = CheckpointConfig()):
        # Orbax takes absolute paths only.
        self._root = LiteralPath(directory).absolute()
        # The step that Orbax is writing in the background, for the message if that fails.
        self._saving: int | None = None
        _require_writable(self._root)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep, keep_period=config.keep_period, cleanup_tmp_directories=True
        )
        # Compression would take a core from the training step to make float32 weights 8% smaller.
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "record": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self._root, options=options, item_handlers=handlers)

    def save(self, step: int, state: tree.Tree, meta: dict[str, Any]) -> bool:
        """Starts to save `state`, a tree of jax.Arrays, and `meta`, JSON values. The state may be
        donated once this returns.

        Returns False and writes nothing if the step exists already. OSError if the previous save
        failed, or this one could not start; earlier steps stay, and later saves may succeed.
        """
        self.wait()
        # A preempted run may save the step that it has just resumed from.
        if step in committed_steps(self._root):
            return False
        # By path, as the record and the restore know them, whatever containers the state has.
        arrays = tree.paths(state)
        # The record has the fingerprints of the arrays as they are on the devices, before any is
        # written.
        record = make_record(step, arrays, meta)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(storable(arrays)), record=ocp.args.JsonSave(record)
        )
        self._saving = step
        with self._surfacing():
            # Forced, because this class decides when to save; Orbax would apply an interval of its
            # own.
            return self._manager.save(step, args=items, force=True)

    def latest(self) -> int | None:
        """The newest committed step; one still being written does not count."""
        return max(committed_steps(self._root), default=None)

    def meta(self) -> dict[str, Any]:
        """The `meta` of the newest step that has a readable record; {} if nothing was saved."""
        return newest_meta(self._root)

    def restore(self, abstract_state: tree.Tree) -> Restored | None:
        """(step, state, meta) of the newest good step; None if nothing was ever saved.

        `abstract_state` is a tree of ShapeDtypeStructs. Each array is read onto the sharding given
        there, on whatever mesh it was saved. A step that is damaged, or whose trained numbers are
        not all finite, is logged and renamed. ValueError if no step is good, and if structure,
        types or shapes of the checkpoint differ from those of `abstract_state`: then the config has
        changed, and nothing is renamed.
        """
        self.wait()
        return newest(self._root, abstract_state, "", self._set_aside)

    def wait(self) -> None:
        """Waits for the save in progress. OSError if it failed."""
        with self._surfacing():
            self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Waits, raising what `wait` raises, and releases the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except OSError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the error that ended the block is the one to raise

    @contextlib.contextmanager
    def _surfacing(self):
        try:
            yield
        except Exception as error:
            step, self._saving = self._saving, None
            # Orbax raises many types. As an OSError it ends the process with the code that asks for
            # another attempt, see `research.command`.
            raise OSError(
                f"the checkpoint of step {step} in {self._root} was not saved: {error}"
            ) from error

    def _set_aside(self, step: int, kind: str) -> str:
        # A resumed run reaches the step again, and that checkpoint may be bad as well.
        candidates = [f"{kind}-{step}", *(f"{kind}-{step}-{n}" for n in range(2, 1000))]
        name = next(name for name in candidates if not (self._root / name).exists())
        if jax.process_count() > 1:
            # No process may rename the step before all have chosen its new name.
            multihost_utils.sync_global_devices(f"{name} is free")
        # One process renames: the directory is shared by all.
        if jax.process_index() == 0:
            (self._root / str(step)).rename(self._root / name)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{name} is set aside")
        # Orbax caches the list of steps.
        self._manager.reload()
        return f"renamed to {name}"


def restore_params(
    directory: epath.PathLike,
    abstract_params: tree.Tree,
    key: str = "params",
    step: int | None = None,
) -> Restored:
    """(step, parameters, meta) of `step` of a run's checkpoints, or of the newest good one.

    Only the arrays below `key` are read and verified, onto the shardings of `abstract_params`.
    Nothing in `directory` changes; a step that is damaged or not finite is skipped with a warning,
    unless it is the `step` that was asked for. ValueError without a good step, without `step`, and
    for another structure, type or shape.

        step, params, meta = restore_params("runs/a/checkpoints", abstract_params, key="trainable")
    """
    root = LiteralPath(directory).absolute()
    if step is not None and step not in committed_steps(root):
        there = ", ".join(map(str, committed_steps(root))) or "none"
        raise ValueError(f"{root} has no checkpoint of step {step}; there are {there}")
    restored = newest(root, abstract_params, f"{key}/", lambda step, kind: "passed over", only=step)
    if restored is None:
        raise ValueError(
            f"{root} holds no checkpoint; "
            "give the checkpoints directory of a run that has saved one"
        )
    return restored


def _require_writable(root: epath.Path) -> None:
    if jax.process_index():
        return
    # Permissions do not tell: a read-only mount, a full quota or an object store refuses only a
    # write.
    probe = root / ".writable"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"checkpoints cannot be written to {root}: {error}; choose another workdir"
        ) from None
