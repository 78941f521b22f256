"""`open_model`: the model of a run, or of a checkpoint of any format, opened for use."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax

from research.data.tokenizers import Tokenizer, load_tokenizer
from research.downloads.cache import cache_directory
from research.experiment.config import Experiment
from research.interop.load import load, open_checkpoint
from research.interop.restored import read_experiment, restore_run
from research.interop.runs import run_end_ids, run_generation
from research.interop.storage.generation import read_sampling
from research.models.model import Model
from research.objectives.choose import objective_class
from research.run.source import check_source
from research.tree import Tree


@dataclass(frozen=True)
class Opened:
    """A model with its parameters on the first device, and how it takes texts.

    tokenizer      None for a checkpoint without one
    window         length in tokens for evaluation: that of training, for a checkpoint at most 1,024
    begins_texts   whether texts start with the token that begins a text
    stop_ids       tokens that end a text that the model generates
    source         the workdir or checkpoint, for error messages
    experiment, step   those of a run; None for a checkpoint
    held           frozen models beside it; there are none once a run has ended
    sampling       fields of a `SamplingConfig` that the checkpoint recommends, {} for none
    """

    model: Model
    params: Tree
    tokenizer: Tokenizer | None
    window: int
    begins_texts: bool
    stop_ids: tuple[int, ...]
    source: str
    experiment: Experiment | None = None
    step: int | None = None
    held: Mapping[str, Tree] = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)


def open_model(
    workdir: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    adapter: str = "",
    step: int | None = None,
    dtype: str = "float32",
) -> Opened:
    """The model of a run (`workdir`, at `step` or its newest good checkpoint) or of a `checkpoint`
    as `research.interop.load.load` takes it, in `dtype` and with an `adapter` on it.

    ValueError unless exactly one of the two is given, and for what cannot be opened.
    """
    check_source(workdir, checkpoint, adapter)
    if workdir:
        return open_run(workdir, step)
    loaded = load(checkpoint, dtype, adapter=adapter)
    return Opened(
        loaded.model,
        loaded.params,
        loaded.tokenizer,
        loaded.window,
        loaded.begins_texts,
        loaded.stop_ids,
        str(checkpoint),
        sampling=loaded.sampling,
    )


def open_run(workdir: str | Path, step: int | None = None) -> Opened:
    """The model of the run in `workdir` at its newest good checkpoint, or at `step`. Changes
    nothing in `workdir`. ValueError as from `research.interop.restored.restore_run`."""
    folder = Path(workdir)
    read_experiment(folder)  # its error says that this is no run; the next, that a file is missing
    tokenizer = load_tokenizer(folder / "tokenizer")
    run = restore_run(folder, open_checkpoint, step)
    e, objective = run.experiment, objective_class(run.experiment.objective.name)
    # Without a backward pass nothing is recomputed, and this machine may lack the kernels of the
    # one that trained the run.
    execution = replace(e.execution, remat="none", attention="auto")

    return Opened(
        Model(e.model, e.precision, execution),
        run.params,
        tokenizer,
        e.data.sequence_length,
        objective.begins_texts,
        run_end_ids(e, tokenizer, folder),
        str(folder),
        e,
        run.step,
        sampling=read_sampling(run_generation(folder), folder),
    )


def keep_compiled_programs() -> None:
    """Turns on JAX's cache of compiled programs, under GRAFT_CACHE, so that a second start does not
    compile again."""
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
