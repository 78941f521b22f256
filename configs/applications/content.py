"""Constrained writing: texts of a length, with given words and in a form, by SmolLM2-135M-Instruct
with adapters.

    python -m research.train --config=configs/applications/content.py --workdir=runs/content
    python -m research.apply write --workdir=runs/content --input=briefs.csv --output=texts.jsonl

The briefs are made of Alpaca's texts: a text's own length, two of its words and its form are asked
for, so that every text that is learnt meets its brief (`research.data.job_conversations`).

Metric: share of the constraints that are met, by rules, on 50 held-out briefs, as `briefs`, with
distinct words and pairs of words; `research.apply write` counts duplicates.
Baseline: the untuned model by the same evaluation (--config.train.steps=1).
Split and seed: the first 850 briefs of the package and those after them; train.seed 0.
Measured: nothing yet. A step takes some 10 s on two CPU cores.
"""

from research.experiment import PARENTS, application_config, parse_arg


def get_config(arg: str = ""):
    """`[data=SOURCE][,init=CHECKPOINT][,smoke]`; `smoke` is 4 steps of short windows."""
    args = parse_arg(arg, data="alpaca_briefs", init=PARENTS["smollm2_135m"], smoke=False)
    c = application_config(args.init, args.data, 512, args.smoke)
    c.evals.briefs = {"data": "alpaca_briefs", "chat": True, "limit": 50}
    if args.smoke:
        c.evals.briefs.limit = 2
        c.evals.briefs.max_tokens = 4
    return c
