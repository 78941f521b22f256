"""What a training loop writes to its log: a summary at the start, metrics of steps, samples."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from research import command, tree
from research.data.chat import endless_turns
from research.models import pipeline
from research.run.appraisal import sample
from research.run.least_time import published_rate
from research.run.rewind import end_of_skipping
from research.run.saving import remedy
from research.run.session import Session
from research.training.flops import train_flops_per_token
from research.training.kinds import constants_under_rules, count_trained
from research.training.metrics import RunLog
from research.training.narrow import standing_still
from research.training.schedules import warmup_note
from research.training.state import TrainState


def open_log(session: Session, live: bool | None) -> RunLog:
    """The log of a run, which one process writes; all know its last evaluation."""
    e = session.experiment
    log = RunLog(
        session.workdir,
        e.train.steps,
        start_step=session.start_step,
        flops_per_token=train_flops_per_token(e.model, e.data.sequence_length),
        peak_flops=published_rate(session.program),
        wandb=e.logging.wandb,
        config=e.to_json(),
        # One process writes the files of the run; the others would write the same lines.
        enabled=jax.process_index() == 0,
        live=live,
    )
    if jax.process_count() > 1:
        # The others have no rows, and all must make the same evaluations.
        known = -1 if log.evaluated_step is None else log.evaluated_step
        known = int(multihost_utils.broadcast_one_to_all(np.int32(known)))
        log.evaluated_step = None if known < 0 else known
    return log


def announce(session: Session, log: RunLog) -> None:
    """Writes what is about to run: parameters, devices, batch, data and first step. Then the lines
    of `session.notes`, and one for each dimension that the mesh does not divide."""
    program, data = session.program, session.experiment.data
    # Axes of size 1 exist in every mesh and split nothing.
    split = (f"{name}:{size}" for name, size in program.mesh.shape.items() if size > 1)
    devices = ", ".join(split) or "one device"
    trained = f"{count_trained(program.trainable_specs):,} parameters"
    # Adapters: the number that is trained, and the model that it changes.
    if program.held_specs["base"]:
        trained += f" trained beside {tree.count(program.model.specs()):,}"
    begin = "resuming at" if session.start_step else "from"
    log.note(
        f"{trained} on {devices}; batches of {program.batch_size} x {data.sequence_length} tokens "
        f"of {data.source}; {begin} step {session.start_step:,}"
    )
    tokenizer, endless = session.corpus.tokenizer, None
    if program.objective.answers_chats and tokenizer.chat_template is None:
        endless = "the tokenizer has no chat template: each answer follows its prompt as it is"
    elif program.objective.answers_chats:
        endless = endless_turns(tokenizer)
    for line in [*session.notes, *([endless] if endless else [])]:
        log.note(line)
    optimizer, dtype = session.experiment.optimizer, session.experiment.precision.param_dtype
    for line in (
        *constants_under_rules(optimizer.weight_decay_rules, program.trainable_specs),
        *standing_still(dtype, optimizer.learning_rate),
        *warmup_note(session.experiment.train.steps, optimizer.warmup_steps),
    ):
        log.note(line)
    if program.stages > 1:
        asked = session.experiment.execution.micro_batches
        count = pipeline.micro_batches(asked, program.rows_of_stages, program.stages)
        log.note(
            f"pipeline: {program.stages} stages, {count} micro-batches; a stage has nothing to do "
            f"in {pipeline.bubble(count, program.stages):.0%} of its turns"
        )
    for line in program.whole_dimensions():
        log.note(f"not split: {line} does not divide")


def log_step(
    session: Session,
    log: RunLog,
    step: int,
    metrics: dict[str, jax.Array],
    beside: Mapping[str, float],
) -> dict[str, float]:
    """Logs the metrics of a step, with learning rate, peak memory and the values `beside` them, and
    returns them by name.

    `step` is the number of steps done. Raises `command.Stop` if the loss is not finite, and that or
    `Rewind` after `skip.limit` updates left out in a row.
    """
    program = session.program
    # One transfer for all metrics. It waits for the devices, which otherwise run ahead of the host;
    # steps that are not logged never wait.
    values = {name: value.item() for name, value in jax.device_get(metrics).items()}
    values |= beside
    # Without label smoothing and the like they are equal, and one is enough.
    if math.isclose(values.get("nll", math.inf), values["loss"], rel_tol=1e-5):
        del values["nll"]
    # The update that made `step` steps out of step - 1 used the rate at step - 1.
    made = step - 1 - int(values.get("skipped", 0))
    values["learning_rate"] = float(program.schedule(made))
    stats = (device.memory_stats() or {} for device in jax.local_devices())
    peak = max(one.get("peak_bytes_in_use", 0) for one in stats)
    if peak:  # a CPU does not tell
        values["memory_bytes"] = peak
    log.step(step, values, program.batch_size * session.experiment.data.sequence_length)
    # After the row is written: metrics.jsonl then shows how the run ended.
    skip = session.experiment.skip
    if values.get("skipped_in_row", 0) >= skip.limit:
        end_of_skipping(session, log, step, values)
    if not math.isfinite(values["loss"]) and not skip.nonfinite:
        raise command.Stop(
            command.BUG,
            f"the loss is {values['loss']} at step {step}; the last checkpoint is from step "
            f"{session.checkpoints.latest()}; {remedy(session.experiment)}",
        )
    return values


def log_sample(
    session: Session,
    log: RunLog,
    state: TrainState,
    step: int,
    given: Sequence[tuple[str, str]] = (),
) -> None:
    """Logs the samples that are `given`, else a continuation of the config's prompt, for models
    that generate. A prompt that the model cannot take, such as one that is too long, is said and
    does not end the run."""
    for prompt, text in given:
        log.sample(step, prompt, text)
    if given:
        return
    heldout = session.appraisal.heldout.windows
    try:
        written = sample(session.program, session.corpus.tokenizer, state, step, heldout)
    except ValueError as error:
        log.note(f"no sample at step {step:,}: {error}; set config.train.sample_prompt")
        return
    if written is not None:
        log.sample(step, *written)
