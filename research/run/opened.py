"""A model opened for use: of a run, or of a checkpoint of any format."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax

from research.data.chat import end_of_turn
from research.data.tokenizers import Tokenizer, load_tokenizer
from research.downloads.cache import cache_directory
from research.experiment.config import Experiment
from research.interop.load import load, open_checkpoint
from research.interop.restored import read_experiment, restore_run
from research.models.model import Model
from research.objectives.choose import objective_class
from research.run.source import check_source
from research.tree import Tree


@dataclass(frozen=True)
class Opened:
    """A model with its parameters on the first device, and how texts are put to it.

    tokenizer      None where a checkpoint has none
    window         tokens that the model sees at once: those of its training, or up to 1,024
    begins_texts   whether a text has the token that begins one in front
    stop_ids       tokens that end what the model writes
    source         the workdir or checkpoint, for error lines
    experiment, step   of a run; None for a checkpoint
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
    )


def open_run(workdir: str | Path, step: int | None = None) -> Opened:
    """The run in `workdir` at its newest good checkpoint, or at `step`; nothing in there is
    changed. ValueErrors as `research.interop.restored.restore_run` raises them."""
    folder = Path(workdir)
    read_experiment(folder)  # what is no run is told before its tokenizer is missed
    tokenizer = load_tokenizer(folder / "tokenizer")
    run = restore_run(folder, open_checkpoint, step)
    e, objective = run.experiment, objective_class(run.experiment.objective.name)
    # Nothing is rematerialised without a backward pass, and this machine need not have the kernels
    # that trained the run.
    execution = replace(e.execution, remat="none", attention="auto")
    ends = end_of_turn(tokenizer) if objective.answers_chats else None
    return Opened(
        Model(e.model, e.precision, execution),
        run.params,
        tokenizer,
        e.data.sequence_length,
        objective.begins_texts,
        () if ends is None else (ends,),
        str(folder),
        e,
        run.step,
    )


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs under GRAFT_CACHE, so that a second start need not
    compile."""
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
