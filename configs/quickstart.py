"""A small LLaMA-type model on the source files of Python's own standard library; nothing is
downloaded.

    ./launch/local.sh
    python -m research.train --config=configs/quickstart.py --workdir=runs/quickstart

On 2 CPU cores it ends in under 5 minutes with fewer bits per byte on held-out files than `gzip -9`
needs for them. On English instead: --config.data.source=shakespeare, or the path of a folder of
texts (.txt, .md, .py, ...) or records (.jsonl, .parquet, .csv, .json).
"""

from research.experiment import base_config, parse_arg


def get_config(arg: str = ""):
    """`:smoke` is the same run in 30 steps of a tiny model."""
    args = parse_arg(arg, smoke=False)
    c = base_config()
    c.data.source = "stdlib"
    c.data.tokenizer = "bpe:4096"
    c.data.sequence_length = 256
    c.data.batch_size = 16

    c.model.preset = "smollm2_135m"  # its architecture, at these sizes
    c.model.vocab_size = 4096
    c.model.layers = 4
    c.model.d_model = 256
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = 64
    c.model.d_ff = 704
    c.model.max_length = 256
    c.model.rope_theta = 10000.0

    c.optimizer.name = "muon"  # after 100 steps where AdamW is after 320
    c.optimizer.learning_rate = 0.01
    c.train.steps = 150
    c.train.log_every = 5
    c.train.eval_every = 50
    c.train.eval_batches = 4
    c.train.sample_every = 50
    c.train.sample_prompt = "def "
    c.checkpoint.every = 50
    c.precision.compute = "float32"
    c.execution.unroll = 0

    if args.smoke:
        c.data.sequence_length = 64
        c.data.batch_size = 8
        c.data.tokenizer = "bpe:512"
        c.model.vocab_size = 512
        c.model.layers = 2
        c.model.d_model = 64
        c.model.head_size = 16
        c.model.d_ff = 128
        c.train.steps = 30
        c.train.log_every = 1
        c.train.eval_every = 10
        c.train.eval_batches = 2
        c.train.sample_every = 0
        c.train.sample_tokens = 16
        c.checkpoint.every = 10
    return c
