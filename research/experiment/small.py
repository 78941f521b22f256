"""The base of the shipped ablations: runs of about a minute on one core."""

import email
from pathlib import Path

from ml_collections import ConfigDict

from research.experiment.config import base_config


def small_config(smoke: bool = False) -> ConfigDict:
    """A LLaMA-type model of 0.5M parameters on Python's standard library, 150 steps of 2,048 tokens
    by AdamW; with `smoke` 8 steps of a tiny one on one of its packages, which take seconds.

    Evaluations in mid-run read all that the last one reads, so that curves are comparable.
    """
    c = base_config()
    # All held-out text is read at the end of a run: of one package that is quickly done.
    c.data.source = str(Path(email.__file__).parent) if smoke else "stdlib"
    c.data.tokenizer = "bpe:512"
    c.data.sequence_length = 32 if smoke else 128
    c.data.batch_size = 8 if smoke else 16

    c.model.preset = "smollm2_135m"  # its architecture, at these sizes
    c.model.vocab_size = 512
    c.model.layers = 2
    c.model.d_model = 32 if smoke else 128
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = c.model.d_model // 4
    c.model.d_ff = 64 if smoke else 352
    c.model.max_length = c.data.sequence_length
    c.model.rope_theta = 10000.0

    c.optimizer.learning_rate = 1e-2
    c.train.steps = 8 if smoke else 150
    c.train.log_every = 4 if smoke else 10
    c.train.eval_every = 4 if smoke else 50
    c.train.eval_batches = 1 if smoke else 0
    c.train.sample_tokens = 0
    c.checkpoint.every = 4 if smoke else 50
    c.checkpoint.keep = 1
    c.precision.compute = "float32"
    c.execution.unroll = 0
    return c
