"""Reading and verifying checkpoints.

A step is a directory with two Orbax items. `state` has the arrays as nested dicts. `record` is JSON
with the type, shape and fingerprint of every array, the caller's `meta`, and the SHA-256 of all
this. Orbax restores flipped bits without complaint; the fingerprints detect them. The SHA-256 tells
a flipped bit in the record from a change of the model.
"""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.path import step as step_names

from research import tree
from research.training.fingerprint import fingerprint
from research.training.finite import nonfinite, shown

Restored = tuple[int, tree.Tree, dict[str, Any]]

# Errors of a network or of permissions, which say nothing about the stored bytes: renaming a good
# step for one of these would lose work.
_PASSING = (
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "CANCELLED",
)


# TensorStore has no unsigned types below a byte, so these are stored as the signed type of their
# width.
_CARRIERS = {"uint4": "int4", "uint2": "int2"}


class _Damaged(Exception):
    """A step cannot be read, or differs from what was saved; the message says how."""


def committed_steps(root: epath.Path) -> list[int]:
    """Steps whose save was completed, oldest first."""
    # Orbax's names: a step that is still being written has a suffix and is not among them.
    return sorted(entry.step for entry in step_names.standard_name_format().find_all(root))


def newest_meta(root: epath.Path) -> dict[str, Any]:
    """The `meta` of the newest step whose record can be read; {} without one. Reads no array."""
    for step in reversed(committed_steps(root)):
        with contextlib.suppress(_Damaged):
            return _read_record(root / str(step) / "record" / "metadata", step)["meta"]
    return {}


def make_record(step: int, arrays: dict[str, jax.Array], meta: dict[str, Any]) -> dict[str, Any]:
    """The signed record of a step. ValueError for `meta` that is not JSON."""
    try:
        # As it will be read back: tuples are lists and keys are strings in JSON.
        plain = json.loads(json.dumps(meta))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a checkpoint's meta must be JSON: {error}") from None
    # Taken before the save starts: the arrays may be donated to the next step once `save` returns.
    prints = fingerprint(arrays)
    entries = {path: [*_form(array), prints[path]] for path, array in arrays.items()}
    body = {"step": step, "meta": plain, "arrays": entries}
    return {**body, "sha256": _digest(body)}


def storable(arrays: dict[str, jax.Array]) -> tree.Tree:
    """The arrays as nested dicts that Orbax can store: unsigned types below a byte are viewed as
    signed ones, and arrays without elements are left out. ValueError if no array is left."""
    kept = {path: array for path, array in arrays.items() if array.size}
    if not kept:
        raise ValueError("a checkpoint needs at least one array with elements")
    return tree.unflatten(
        {path: _view(array, _CARRIERS.get(str(array.dtype))) for path, array in kept.items()}
    )


def newest(
    root: epath.Path,
    abstract: tree.Tree,
    below: str,
    set_aside: Callable[[int, str], str],
    only: int | None = None,
) -> Restored | None:
    """(step, tree like `abstract`, meta) of the newest good step; None if there are no steps.

    A step is bad if it is damaged, and if a trained number in it is NaN or infinite: nothing could
    be continued from it. `below` selects arrays by a prefix of their path: "" for all, "params/"
    for those under that key. `only` is a step to read instead of the newest, finite or not.

    A bad step is logged as a warning and passed, with the word "damaged" or "nonfinite", to
    `set_aside`, which returns a phrase for the log that says what it did. ValueError if all steps
    are bad. ValueError too if the arrays of a step differ from `abstract` in structure, type or
    shape: that step is good, and the config has changed.
    """
    wanted = {below + path: leaf for path, leaf in tree.paths(abstract).items()}
    # Before any read: an impossible sharding is the caller's mistake, not a damaged step.
    _require_divisible(wanted)
    # From the newest step back to the first good one.
    problems = []
    for step in reversed(committed_steps(root)) if only is None else [only]:
        problem, kind = "damaged for another process", "damaged"
        arrays = None
        try:
            arrays, meta = _read(root / str(step), step, wanted, below)
        except _Damaged as error:
            problem = str(error)
        # All processes must take the same step, so one that cannot read it decides for all. Only
        # then are the numbers looked at, which is a computation of all processes together.
        if _everywhere(arrays is not None):
            odd = nonfinite(arrays)
            if odd and only is not None:
                logging.warning("step %d in %s is not finite: %s", step, root, shown(odd))
            if not odd or only is not None:
                leaves = [arrays[path] for path in wanted]
                return step, jax.tree.unflatten(jax.tree.structure(abstract), leaves), meta
            problem, kind = f"NaN or infinite numbers in {shown(odd)}", "nonfinite"
        problems.append(f"step {step} ({problem}; {set_aside(step, kind)})")
        logging.warning("checkpoint %s in %s is %s", problems[-1], root, kind)
    _refuse_to_begin(root, problems)
    return None


def _refuse_to_begin(root: epath.Path, problems: list[str]) -> None:
    """ValueError if there are steps, here or set aside by an earlier start, and none is good."""
    if not problems:
        aside = [*root.glob("damaged-*"), *root.glob("nonfinite-*")]
        problems = [f"{folder.name} (set aside earlier)" for folder in sorted(aside)]
    if problems:
        raise ValueError(
            f"no checkpoint in {root} is good: {', '.join(problems)}; delete them to start afresh"
        )


def _read(
    folder: epath.Path, step: int, wanted: dict[str, jax.ShapeDtypeStruct], below: str
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    record = _read_record(folder / "record" / "metadata", step)
    saved = {path: entry for path, entry in record["arrays"].items() if path.startswith(below)}
    _require_same_form(folder, saved, wanted)
    arrays = _read_arrays(folder / "state", wanted, partial=bool(below))
    # The arrays as they are on the devices now: this covers storage, network and decoding at once.
    changed = [path for path, bits in fingerprint(arrays).items() if bits != saved[path][-1]]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise _Damaged(f"the bits of {', '.join(changed[:3])}{more} changed")
    return arrays, record["meta"]


def _read_record(file: epath.Path, step: int) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
        # The digest is over everything else in the record.
        signature = record.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        _reraise_passing(error)
        raise _Damaged(f"its record cannot be read: {_line(error)}") from error
    # The step is part of the digest, so a directory that was renamed to another step is found too.
    if signature != _digest(record) or record["step"] != step:
        raise _Damaged("its record was changed")
    return record


def _read_arrays(
    folder: epath.Path, wanted: dict[str, jax.ShapeDtypeStruct], partial: bool
) -> dict[str, jax.Array]:
    # Only what is wanted is read; arrays without elements were never written.
    stored = {path: _stored_form(leaf) for path, leaf in wanted.items() if math.prod(leaf.shape)}
    item = tree.unflatten(stored)
    places = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype), item
    )
    # `partial_restore` leaves out what `below` does not select: weights without their optimizer
    # state.
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=places, partial_restore=partial)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            arrays = tree.paths(reader.restore(folder, args=arguments))
    # Any exception: whether Orbax, TensorStore, JSON or the file system fails depends on which
    # bytes are damaged.
    except Exception as error:
        _reraise_passing(error)
        raise _Damaged(_line(error)) from error
    if {path: _form(array) for path, array in arrays.items()} != {
        path: _form(leaf) for path, leaf in stored.items()
    }:
        raise _Damaged("its arrays are not those of its record")
    return {
        path: _view(arrays[path], x.dtype) if path in arrays else _empty(x)
        for path, x in wanted.items()
    }


def _require_same_form(
    folder: epath.Path, saved: dict[str, list], wanted: dict[str, jax.ShapeDtypeStruct]
) -> None:
    """ValueError with the first paths at which checkpoint and model differ in type or shape."""
    got = {path: f"{entry[0]}{entry[1]}" for path, entry in saved.items()}
    want = {path: "{}{}".format(*_form(leaf)) for path, leaf in wanted.items()}
    differing = [path for path in {**want, **got} if got.get(path) != want.get(path)]
    if differing:
        shown = "; ".join(
            f"{p}: got {got.get(p, 'nothing')}, wanted {want.get(p, 'nothing')}"
            for p in differing[:5]
        )
        raise ValueError(
            f"{folder} holds another model than the one configured: "
            f"{len(differing)} of {len(want)} arrays differ "
            f"({shown}); restore the configuration it was saved with, or start in a new folder"
        )


def _require_divisible(wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
    for path, leaf in wanted.items():
        try:
            _place(leaf).shard_shape(leaf.shape)
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be restored onto its sharding: {_line(error)}"
            ) from None


def _form(leaf: jax.Array | jax.ShapeDtypeStruct) -> list:
    return [str(leaf.dtype), list(leaf.shape)]


def _view(array: jax.Array, dtype: Any) -> jax.Array:
    """The same bits as another type of that width; `array` itself for None and for its own type."""
    if dtype is None or array.dtype == dtype:
        return array
    return jax.lax.bitcast_convert_type(array, dtype)


def _empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype, device=_place(leaf))


def _stored_form(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        leaf.shape, _CARRIERS.get(str(leaf.dtype), leaf.dtype), sharding=_place(leaf)
    )


def _place(leaf: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _reraise_passing(error: Exception) -> None:
    """Raises an error that does not concern the stored bytes; one of the storage as an OSError,
    for TensorStore raises ValueErrors, which a command would take for mistakes of the user."""
    if isinstance(error, (MemoryError, PermissionError)):
        raise error
    if any(code in str(error) for code in _PASSING):
        raise OSError(_line(error)) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _everywhere(good: bool) -> bool:
    """True if `good` is true in every process: all must agree on the step to use."""
    # One process has nobody to agree with, and no collective to wait in.
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))
