"""The base of recipes that put adapters on a chat model: applications, and ablations of tuning."""

from ml_collections import ConfigDict

from research.experiment.config import base_config
from research.experiment.methods import PARENTS, tune
from research.experiment.small import small_config


def tuned_config(init: str, source: str) -> ConfigDict:
    """LoRA on the chat model of the checkpoint `init`, with its own tokenizer, on conversations of
    `source`. The rate falls to zero, and weights that are good are not pulled towards zero."""
    c = base_config()
    c.init = init
    c.objective.name = "chat"
    c.data.source = source
    c.data.tokenizer = ""  # the checkpoint's
    c.train.sample_tokens = 0
    c.optimizer.schedule = "linear"
    c.optimizer.weight_decay = 0.0
    tune(c, "lora")
    return c


def application_config(init: str, source: str, length: int, smoke: bool = False) -> ConfigDict:
    """A run of an application: 200 steps of 8 windows of `length` tokens; with `smoke` 4 steps of
    short windows."""
    c = tuned_config(init, source)
    c.data.sequence_length = 64 if smoke else length
    c.data.batch_size = 4 if smoke else 8
    c.train.steps = 4 if smoke else 200
    c.train.log_every = 2 if smoke else 5
    c.train.eval_every = 2 if smoke else 100
    c.train.eval_batches = 1 if smoke else 10
    c.checkpoint.every = 2 if smoke else 50
    if smoke:
        c.precision.compute = "float32"
    return c


def small_tuned_config(smoke: bool = False) -> ConfigDict:
    """A run of an ablation: SmolLM2-135M on Alpaca's rows, 60 steps of 4 windows of 256 tokens;
    with `smoke` a random tiny model on Python's standard library, without network."""
    if smoke:
        c = small_config(smoke=True)
        tune(c, "lora")
        return c
    preset = "smollm2_135m"
    c = tuned_config(PARENTS[preset], "alpaca")
    c.model.preset = preset
    c.data.sequence_length, c.data.batch_size = 256, 4
    c.train.steps = 60
    c.train.eval_every = 20
    c.checkpoint.every = 20
    c.checkpoint.keep = 1
    return c
