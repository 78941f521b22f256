"""A run directory opened for use: its config, tokenizer and parameters."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax

from research.data.chat import end_of_turn
from research.data.tokenizers import Tokenizer, load_tokenizer
from research.downloads.cache import cache_directory
from research.experiment import config as experiments
from research.experiment.config import Experiment
from research.files import read_json
from research.interop.load import open_checkpoint
from research.models.model import Model
from research.models.spec import abstract
from research.training.checkpoint import restore_params
from research.tree import Tree
from research.tuning.method import new_frozen, split_specs
from research.weights.rules import attach


@dataclass(frozen=True)
class Run:
    """What a run has made: the parameters of `step` on the first device, and what belongs to
    them."""

    experiment: Experiment
    tokenizer: Tokenizer
    model: Model
    params: Tree
    step: int

    @property
    def begins_texts(self) -> bool:
        """Whether the run's training texts had the token that begins a text in front; pairs to
        translate have not."""
        return self.experiment.objective.name != "translation"

    @property
    def window(self) -> int:
        """Tokens that the model saw at once in training."""
        return self.experiment.data.sequence_length

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end what the model writes, beside the tokenizer's own: a chat model's end
        of turn."""
        ends = end_of_turn(self.tokenizer) if self.experiment.objective.name == "chat" else None
        return () if ends is None else (ends,)


def open_run(workdir: str | Path, step: int | None = None) -> Run:
    """The run in `workdir` at its newest good checkpoint, or at `step`; nothing in there is
    changed.

    ValueError for a folder that is no run, a run without a good checkpoint, and a step that is not
    there.
    """
    folder = Path(workdir)
    experiment = read_experiment(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    # Nothing is rematerialised without a backward pass, and this machine need not have the kernels
    # that trained the run.
    execution = replace(experiment.execution, remat="none", attention="auto")
    model, precision = (
        Model(experiment.model, experiment.precision, execution),
        experiment.precision,
    )
    specs = model.specs()
    trainable, frozen = split_specs(
        specs, experiment.model, experiment.tune, experiment.lora, experiment.quantize
    )
    wanted = abstract(trainable, precision.param_dtype)
    step, params, _ = restore_params(folder / "checkpoints", wanted, key="trainable", step=step)
    if frozen and experiment.lora.start != "default":  # which has changed them, so they were saved
        held = abstract(frozen, precision.compute_dtype)
        params = attach(
            restore_params(folder / "checkpoints", held, key="frozen", step=step)[1], params
        )
    elif frozen and experiment.init:
        with open_checkpoint(experiment.init) as checkpoint:
            params = attach(checkpoint.restore(abstract(frozen, precision.compute_dtype)), params)
    elif frozen:
        made = new_frozen(
            specs, frozen, experiment.quantize, experiment.train.seed, precision.compute_dtype
        )
        params = attach(made, params)
    return Run(experiment, tokenizer, model, params, step)


def read_experiment(folder: Path) -> Experiment:
    """The resolved config of a run; ValueError where the folder has none."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} is no run: it has no config.json; give the --workdir of a run of research.train"
        )
    try:
        return experiments.from_json(read_json(file))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is not the config of a run ({error!r}); restore it from a copy"
        ) from None


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs under GRAFT_CACHE, so that a second start need not
    compile."""
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
