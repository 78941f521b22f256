r"""Pretraining of a published model, fully sharded over all devices.

    python -m research.train --config=configs/pretrain.py:model=llama3_8b \
        --workdir=/mnt/runs/llama3_8b --config.data.source=tfds:c4 --config.mesh=fsdp:-1

`model` is a name of research/models/presets, `data` a source as in config.data.source; `smoke`
keeps the family and shrinks its sizes to a minute on a CPU. The workdir is a folder that all
processes share: a disk, or a bucket that is mounted (gcsfuse). One config serves every number of
devices: the batch is set per device. A run that is resumed on another number keeps its batch, by
--config.data.batch_size=ROWS --config.data.batch_size_per_device=0.

Known to fit as shipped, by the chips' own compilers (`python -m research.fit
--config=configs/pretrain.py:model=MODEL --target=TARGET`; research/fit/README.md has the figures):

    llama3_8b       v5p:4x4x4, v6e:16x16, v5e:16x16, h100:8
    llama3_70b      v5p:8x8x8
    llama3_405b     v5p:8x16x16
    mixtral_8x7b    v5p:4x4x4; with expert parallelism --config.mesh=expert:8,fsdp:-1

Recipe: AdamW with b2 = 0.95, cosine to a tenth, decay 0.1, gradients clipped at 1 (LLaMA,
arXiv:2302.13971, section 2.3); BERT and the 2017 transformer keep their own schedules
(arXiv:1810.04805, A.2; arXiv:1706.03762, 5.3); T5 corrupts spans under an inverse square root
schedule and Adafactor (arXiv:1910.10683, 3.1.2).
"""

from research.experiment import base_config, parse_arg, shrink_model
from research.models.presets import PRESETS


def get_config(arg: str = ""):
    """`model=PRESET[,data=NAME][,smoke]`."""
    args = parse_arg(arg, model="llama3_8b", data="stdlib", smoke=False)
    c = base_config()
    c.model.preset = args.model
    family = PRESETS.get(args.model)
    if family is None:  # the nearest name is for the experiment to say
        return c
    c.data.source = args.data
    c.data.tokenizer = "bpe:32000"
    c.data.sequence_length = min(family.max_length, 8192)
    c.data.batch_size = 0
    # About 8,192 tokens a device, whatever the length, so the recipe serves any number of devices.
    c.data.batch_size_per_device = max(1, 8192 // c.data.sequence_length)
    c.mesh = "fsdp:-1"

    c.train.steps = 100_000
    c.train.eval_every = 1000
    c.train.eval_batches = 50
    c.checkpoint.every = 1000
    c.optimizer.learning_rate = 3e-4
    if family.kind == "encoder":
        c.objective.name = "masked_lm"
        c.optimizer.learning_rate = 1e-4
        c.optimizer.schedule = "linear"
        c.optimizer.warmup_steps = 10_000
    elif family.position == "relative":
        c.objective.name = "span_corruption"
        c.optimizer.name = "adafactor"
        c.optimizer.schedule = "inverse_sqrt"
        c.optimizer.learning_rate = 1e-2
    elif family.kind == "encoder_decoder":
        c.objective.name = "span_corruption"  # of plain text; on pairs it is "translation"
        c.objective.label_smoothing = 0.1
        c.optimizer.schedule = "inverse_sqrt"
        c.optimizer.learning_rate = 7e-4
        c.optimizer.warmup_steps = 4000

    if args.smoke:
        shrink_model(c, family)
        c.data.tokenizer = "bpe:512"
        c.data.sequence_length = 64
        c.data.batch_size = 8
        c.data.batch_size_per_device = 0
        c.mesh = ""
        c.precision.compute = "float32"
        c.train.steps = 30
        c.train.log_every = 1
        c.train.eval_every = 10
        c.train.eval_batches = 2
        c.train.sample_tokens = 16
        c.checkpoint.every = 10
        # 30 steps are shorter than the warm-ups above.
        c.optimizer.warmup_steps = None
        c.optimizer.learning_rate = 1e-3
    return c
