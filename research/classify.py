"""Labels texts with a trained classifier: python -m research.classify --workdir=runs/sentiment
--text="A fine film."

The model is that of a run of task=classification (--workdir) or of a checkpoint (--checkpoint),
such as a BertForSequenceClassification of Hugging Face, on which an --adapter may be put. Texts
come from --text, from the lines of a --prompt_file or, without either, of standard input. Prints
label, probability and text, separated by tabs. A .jsonl file has objects {"text": ...}; if they
have a "label" too, the accuracy is printed. --json prints {"labels", "texts": [{"text", "label",
"probabilities"}], "accuracy"}.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from research import command
from research.files import read_text
from research.run.source import check_source

WORKDIR = flags.DEFINE_string("workdir", None, "the directory of a run of research.train")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a checkpoint folder or package, instead of a run"
)
ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
)
STEP = flags.DEFINE_integer(
    "step", None, "the checkpoint to take; by default the newest good one", lower_bound=0
)
DTYPE = flags.DEFINE_string(
    "dtype", "float32", "with --checkpoint: the type of parameters and computation"
)
TEXT = flags.DEFINE_multi_string("text", [], "a text; may be given several times")
PROMPT_FILE = flags.DEFINE_string(
    "prompt_file", None, 'one text a line, or .jsonl with {"text": ...} and perhaps "label" a line'
)
JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")

# A text and, if it is known, the name of its class.
Labelled = tuple[str, str | None]


def main(arguments: list[str]) -> int:
    """Reads the flags and labels the texts; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; quote the text: --text='two words'"
        )
    check_source(WORKDIR.value, CHECKPOINT.value, ADAPTER.value)
    texts: list[Labelled] = [(text, None) for text in TEXT.value]
    if PROMPT_FILE.value:
        texts += read_texts(Path(PROMPT_FILE.value))
    # Like other filters of a shell: what is not named is read from the pipe.
    if not texts:
        texts = [(line.strip(), None) for line in sys.stdin if line.strip()]
    if not texts:
        raise ValueError("give --text=TEXT, --prompt_file=FILE, or lines on standard input")
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.infer.classes import classify
    from research.interop.runs import is_run
    from research.interop.storage.label_names import read_label_names
    from research.run.opened import keep_compiled_programs, open_model

    keep_compiled_programs()
    opened = open_model(
        WORKDIR.value,
        CHECKPOINT.value,
        adapter=ADAPTER.value,
        step=STEP.value,
        dtype=DTYPE.value,
    )
    if opened.tokenizer is None:
        raise ValueError(
            f"{opened.source} has no tokenizer; put its tokenizer.json into the folder"
        )
    # A run knows the names of its classes; a folder of peft's may have none, and its base does.
    from_run = bool(ADAPTER.value) and is_run(Path(ADAPTER.value).expanduser())
    named = ADAPTER.value if from_run else opened.source
    names = read_label_names(named, opened.model.config.labels)
    # A run's texts were cut to its sequences; a checkpoint says no more than its positions.
    longest = opened.window if WORKDIR.value else opened.model.config.max_length
    probs_NC = classify(
        opened.model, opened.params, opened.tokenizer, [text for text, _ in texts], longest
    )
    print_labels(texts, names, probs_NC)
    return command.DONE


def print_labels(texts: list[Labelled], names: list[str], probs_NC: Any) -> None:
    """Prints the likeliest class of each text, and the accuracy where classes are known."""
    chosen = [names[number] for number in probs_NC.argmax(axis=-1)]
    known = [(expected, name) for (_, expected), name in zip(texts, chosen) if expected is not None]
    # A misspelt label would only lower the accuracy.
    for expected, _ in known:
        if expected not in names:
            raise ValueError(f"label {expected!r} is no class; there are {', '.join(names)}")
    accuracy = sum(expected == name for expected, name in known) / len(known) if known else None
    if JSON.value:
        rows = [
            {"text": text, "label": name, "probabilities": dict(zip(names, map(float, probs_C)))}
            | ({} if expected is None else {"expected": expected})
            for (text, expected), name, probs_C in zip(texts, chosen, probs_NC)
        ]
        print(json.dumps({"labels": names, "texts": rows, "accuracy": accuracy}))
        return
    for (text, _), name, probs_C in zip(texts, chosen, probs_NC):
        print(f"{name}\t{probs_C.max():.4f}\t{text}")
    if known:
        print(f"accuracy {accuracy:.4f} of {len(known)} labelled texts", file=sys.stderr)


def read_texts(file: Path) -> list[Labelled]:
    """The texts of a file, without blank lines, and their labels if it has any. ValueError with the
    number of a line that is no text."""
    lines = read_text(file, "--prompt_file").removeprefix("\ufeff").split("\n")
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if file.suffix != ".jsonl":
        return [(line, None) for _, line in numbered]
    return [_labelled(file, number, line) for number, line in numbered]


def _labelled(file: Path, number: int, line: str) -> Labelled:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError(
            f'--prompt_file={file}, line {number} is no object like {{"text": "A fine film."}}: '
            f"{line[:60]!r}"
        )
    label = record.get("label")
    # Numbers are named as in training: 1.0 is class "1".
    whole = isinstance(label, float) and label.is_integer()
    return record["text"], None if label is None else str(int(label) if whole else label)


if __name__ == "__main__":
    command.run(main)
