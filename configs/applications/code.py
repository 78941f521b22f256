"""Code: completion and filling of gaps, on the source files of Python's own library.

    python -m research.train --config=configs/applications/code.py --workdir=runs/code
    python -m research.apply complete --workdir=runs/code --input=gaps.jsonl --output=filled.jsonl

The model of configs/quickstart.py, trained on stretches of whole lines of which nine in ten have a
gap: what is before it and behind it is read, in either order, and what fills it is written
(arXiv:2207.14255). `data=SOURCE` takes other texts, such as a folder of your own code. A folder of
repositories, `repository:FOLDER`, is read as one text for each, every file behind those that it
imports: as config.data.source of configs/quickstart.py a window then holds a file and what it uses.

Metric: exact match of single lines that are hidden in held-out files, 200 gaps of seed 1, as
`infilling`; the same gaps by what is before them alone as `prefix`.
Baseline: the model without what is behind the gap (`prefix`), and before its first step, which
matches none.
Split and seed: the held-out files of the source, train.seed 0. HumanEval's pass@1 is
`python -m research.evaluate --workdir=runs/code --evals=humaneval`; a model of 5M parameters solves
none of its problems.
Measured: nothing yet but the smoke form, which matches none of 4 gaps.
"""

from research.experiment import base_config, parse_arg


def get_config(arg: str = ""):
    """`[data=SOURCE][,smoke]`; `smoke` is the same in 8 steps of a tiny model."""
    args = parse_arg(arg, data="stdlib", smoke=False)
    c = base_config()
    c.data.source = f"infill:{args.data}"
    c.data.tokenizer = "bpe:4096+fim"
    c.data.sequence_length = 512
    c.data.batch_size = 8

    c.model.preset = "smollm2_135m"  # its architecture, at these sizes
    c.model.vocab_size = 4096
    c.model.layers = 4
    c.model.d_model = 256
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = 64
    c.model.d_ff = 704
    c.model.max_length = 512
    c.model.rope_theta = 10000.0

    c.optimizer.name = "muon"  # as in configs/quickstart.py
    c.optimizer.learning_rate = 0.01
    c.train.steps = 600
    c.train.log_every = 10
    c.train.eval_every = 200
    c.train.eval_batches = 4
    c.train.sample_prompt = "def "
    c.checkpoint.every = 100
    c.precision.compute = "float32"
    c.execution.unroll = 0
    c.evals.infilling = {"data": args.data}
    c.evals.prefix = {"kind": "infilling", "data": args.data, "order": "prefix"}

    if args.smoke:
        c.data.tokenizer = "bpe:512+fim"
        c.data.sequence_length = 128
        c.data.batch_size = 4
        c.model.vocab_size = 512
        c.model.layers = 2
        c.model.d_model = 32
        c.model.head_size = 8
        c.model.d_ff = 64
        c.train.steps = 8
        c.train.log_every = c.train.eval_every = c.checkpoint.every = 4
        c.train.eval_batches = 1
        c.train.sample_tokens = 0
        c.evals.infilling = {"data": args.data, "limit": 4, "max_tokens": 8}
        c.evals.prefix = {**c.evals.infilling, "kind": "infilling", "order": "prefix"}
    return c
