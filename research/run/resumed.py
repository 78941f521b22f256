"""Whether a run may be continued: what its checkpoint and its folder say about it, compared with
what is given now."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.experiment.config import Experiment, from_json, refused_changes
from research.files import read_json
from research.run.program import Program

# Two spellings of one number, the rows of a batch: over all devices, or of each.
_BATCH = ("data.batch_size:", "data.batch_size_per_device:")


def config_before(workdir: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The config, as values of `config.json`, that a run had so far: that of its newest checkpoint,
    whose `meta` this is, or else of the workdir; {} for a new run.

    ValueError if a run of an older version, whose checkpoints do not have it, lacks config.json.
    """
    file = workdir / "config.json"
    if "config" in meta:
        return meta["config"]
    if file.exists():
        return read_config(file)
    if meta:
        raise ValueError(
            f"{workdir} has checkpoints and no config.json; restore it from a copy, "
            "or take another --workdir"
        )
    return {}


def read_config(file: Path) -> dict[str, Any]:
    """The values of a run's config.json. ValueError for a file that is no config of a run."""
    values = read_json(file)
    try:
        from_json(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not the config of a run ({error!r}); restore it from a copy"
        ) from None
    return values


def compare_configs(
    experiment: Experiment,
    workdir: Path,
    program: Program,
    meta: Mapping[str, Any],
    before: Mapping[str, Any],
) -> list[str]:
    """Lines for the user about what could not be compared. ValueError if the run in `workdir` has
    another config, or batches of another number of rows."""
    file, new, notes = workdir / "config.json", experiment.to_json(), []
    if not before:
        return []
    batch = meta.get("batch_size") or _batch_before(workdir, before)
    if "config" not in meta and meta:
        notes.append(f"the checkpoints do not have the run's config: {file} is taken for it")
    # The file too, which was written at the start of the process before this one.
    for old in [before, read_config(file)] if file.exists() else [before]:
        changes = refused_changes(old, new)
        if batch == program.batch_size:
            changes = [line for line in changes if not line.startswith(_BATCH)]
        if changes:
            raise ValueError(
                f"the workdir holds a run with another config ({'; '.join(changes)}); "
                "take another --workdir, or pass --allow_changed_config"
            )
    if batch not in (None, program.batch_size):
        raise ValueError(
            f"a batch of {program.batch_size} rows on {program.mesh.size} device(s), where the run "
            f"in {workdir} has {batch}: it would read other data; pass "
            f"--config.data.batch_size={batch} --config.data.batch_size_per_device=0"
        )
    return notes


def refuse_other_inputs(
    workdir: Path, meta: Mapping[str, Any], fingerprints: Mapping[str, str]
) -> None:
    """ValueError if tokenizer, chat template, data or frozen weights are not those of the run."""
    for name, value in fingerprints.items():
        # An older version has recorded fewer of them.
        if meta.get(name, value) != value:
            raise ValueError(
                f"the {name.replace('_', ' ')} is not that of the run in {workdir} (fingerprint "
                f"{value[:12]}, the run's {meta[name][:12]}); restore it, take another --workdir, "
                "or pass --allow_changed_config"
            )


def changes(
    program: Program, before: Mapping[str, Any], meta: Mapping[str, Any], step: int
) -> list[str]:
    """Lines on what is not as it was, for a run that goes on at `step`."""
    return [*stretched(before, program, step), *other_masks(program.experiment, meta, step)]


def stretched(before: Mapping[str, Any], program: Program, step: int) -> list[str]:
    """A line with both learning rates, if a run that goes on at `step` has a schedule that would
    have had another rate there with the former `train.steps`. Warm-up and decay have shares of the
    steps, so more of them change the whole curve, and not only its end."""
    total = program.experiment.train.steps
    former_total = before.get("train", {}).get("steps", total)
    if not step or former_total == total:
        return []
    e = program.experiment
    former = replace(program, experiment=replace(e, train=replace(e.train, steps=former_total)))
    if math.isclose(former.schedule(step), program.schedule(step), rel_tol=1e-4):
        return []
    # The rate of the last step done, and of the next one, as they stand in metrics.jsonl.
    last, following = float(former.schedule(step - 1)), float(program.schedule(step))
    return [
        f"the schedule is {'stretched' if total > former_total else 'shortened'} from "
        f"{former_total:,} to {total:,} steps: the learning rate was {last:.3g} at step {step:,} "
        f"and is {following:.3g} at step {step + 1:,}"
    ]


def other_masks(experiment: Experiment, meta: Mapping[str, Any], step: int) -> list[str]:
    """A line if a run that goes on at `step` drew other dropout masks before. A version whose
    checkpoints do not have the run's config gave the input and the output of T5's stacks the same
    mask; since then each has its own."""
    c = experiment.model
    if not (step and c.dropout and c.final_dropout) or "config" in meta:
        return []
    return [
        f"dropout: up to step {step:,} an older version gave the input and the output of a stack "
        "one mask; from here on each has its own, so the losses are not those of a run without "
        "the stop"
    ]


def _batch_before(workdir: Path, before: Mapping[str, Any]) -> int | None:
    """Rows of a batch of a run whose checkpoints do not say: by its config and, where that counts
    rows per device, by the devices in provenance.json. None if unknown."""
    data = from_json(before).data
    provenance = workdir / "provenance.json"
    if data.batch_size or not provenance.exists():
        return data.batch_size or None
    record = read_json(provenance)
    later = [entry["devices"] for entry in record.get("resumed", []) if "devices" in entry]
    return data.global_batch([record["devices"], *later][-1]["count"])
