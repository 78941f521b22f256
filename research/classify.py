"""Labels texts with a trained classifier: python -m research.classify --workdir=runs/sentiment
--text="A fine film."

The model is that of a run of task=classification (--workdir) or of a checkpoint (--checkpoint),
such as a BertForSequenceClassification of Hugging Face, on which an --adapter may be put. Texts
come from --text, from the lines of a --prompt_file or, without either, of standard input. Prints
label, probability and text, separated by tabs. A .jsonl file has objects {"text": ...}; if they
have a "label" too, the accuracy is printed. --json prints {"labels", "texts": [{"text", "label",
"probabilities"}], "accuracy"}.

    python -m research.classify --workdir=runs/names --text="Ada lives in Paris."

Of a run of task=token_classification, or a BertForTokenClassification, it prints the entities of
each text: label, probability, first character, last + 1 and the words. --json prints {"labels",
"texts": [{"text", "entities": [{"start", "end", "label", "text", "probability"}], "words":
[{"start", "end", "label", "probability"}]}]}.

    python -m research.classify --workdir=runs/answers --question="Where?" --text="Ada is in Rome."

Of a run of task=question_answering, or a BertForQuestionAnswering, it answers from each text the
--question, or that of a .jsonl file of {"question", "context"}: score, first character, last + 1
and the answer, "" where the text has none. --json prints {"answers": [{"question", "text",
"answer", "start", "end", "score", "none"}]}, "none" being the score of having no answer.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from research import command
from research.files import read_text
from research.run.model_flags import WORKDIR, check_named, open_named

OVERLAP = 128  # tokens that two windows of a long text share, at most a third of one

ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
)
TEXT = flags.DEFINE_multi_string("text", [], "a text; may be given several times")
PROMPT_FILE = flags.DEFINE_string(
    "prompt_file", None, 'one text a line, or .jsonl with {"text": ...} and perhaps "label" a line'
)
QUESTION = flags.DEFINE_string(
    "question", "", "what a model of task=question_answering answers from each text"
)
JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")


class Text(NamedTuple):
    """A text, if it is known the name of its class, and what is asked of it."""

    text: str
    label: str | None = None
    question: str = ""


def main(arguments: list[str]) -> int:
    """Reads the flags and labels the texts; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; quote the text: --text='two words'"
        )
    check_named(ADAPTER.value)
    texts = given_texts()
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.interop.runs import is_run
    from research.interop.storage.label_names import read_label_names

    opened = open_named(ADAPTER.value)
    # A run knows the names of its classes; a folder of peft's may have none, and its base does.
    from_run = bool(ADAPTER.value) and is_run(Path(ADAPTER.value).expanduser())
    named = ADAPTER.value if from_run else opened.source
    names = read_label_names(named, opened.model.config.labels)
    # A run's texts were cut to its sequences; a checkpoint says no more than its positions.
    longest = opened.window if WORKDIR.value else opened.model.config.max_length
    over = opened.model.config.labels_over
    asked = [one for one in texts if one.question]
    if asked and over != "spans":
        raise ValueError(
            f"{opened.source} answers no questions; leave out --question, or train a model with "
            "--config=configs/finetune.py:task=question_answering"
        )
    {"text": print_classes, "tokens": print_entities, "spans": print_answers}[over](
        opened, texts, names, longest
    )
    return command.DONE


def given_texts() -> list[Text]:
    """The texts that the flags or standard input give. ValueError for none."""
    texts = [Text(text) for text in TEXT.value]
    if PROMPT_FILE.value:
        texts += read_texts(Path(PROMPT_FILE.value))
    # Like other filters of a shell: what is not named is read from the pipe.
    if not texts:
        texts = [Text(line.strip()) for line in sys.stdin if line.strip()]
    if not texts:
        raise ValueError("give --text=TEXT, --prompt_file=FILE, or lines on standard input")
    return [one._replace(question=one.question or QUESTION.value) for one in texts]


def print_answers(opened: Any, texts: list[Text], names: list[str], longest: int) -> None:
    """Prints the answer to each text's question."""
    from research.infer.answers import answer

    if silent := next((one.text for one in texts if not one.question), None):
        raise ValueError(
            f"the model answers questions, and the text {silent[:40]!r} has none; give "
            "--question=QUESTION, or a .jsonl file of {'question', 'context'}"
        )
    asked = [(one.question, one.text) for one in texts]
    overlap = getattr(getattr(opened.experiment, "objective", None), "overlap", OVERLAP)
    found = answer(opened.model, opened.params, opened.tokenizer, asked, longest, overlap)
    if JSON.value:
        rows = [
            {"question": question, "text": text, "answer": one.text, "start": one.start}
            | {"end": one.stop, "score": one.score, "none": one.none}
            for (question, text), one in zip(asked, found)
        ]
        print(json.dumps({"answers": rows}))
        return
    for one in found:
        print(f"{one.score:.4f}\t{one.start}\t{one.stop}\t{one.text}")


def print_entities(opened: Any, texts: list[Text], names: list[str], longest: int) -> None:
    """Prints the entities in each text, and with --json the label of each word."""
    from research.infer.word_labels import entities, label_words

    plain = [one.text for one in texts]
    labelled = label_words(opened.model, opened.params, opened.tokenizer, plain, longest, OVERLAP)
    found = [entities(text, words, names) for text, words in zip(plain, labelled)]
    if not JSON.value:
        for number, one in ((n, one) for n, spans in enumerate(found) for one in spans):
            place = f"{number}\t" if len(texts) > 1 else ""
            print(f"{place}{one.label}\t{one.probability:.4f}\t{one.start}\t{one.stop}\t{one.text}")
        return
    rows = [
        {
            "text": text,
            "entities": [
                {"start": one.start, "end": one.stop, "label": one.label, "text": one.text}
                | {"probability": one.probability}
                for one in spans
            ],
            "words": [
                {"start": one.start, "end": one.stop, "probability": one.probability}
                | {"label": None if one.label is None else names[one.label]}
                for one in words
            ],
        }
        for text, words, spans in zip(plain, labelled, found)
    ]
    print(json.dumps({"labels": names, "texts": rows}))


def print_classes(opened: Any, texts: list[Text], names: list[str], longest: int) -> None:
    """Prints the likeliest class of each text, and the accuracy where classes are known."""
    from research.infer.classes import classify

    plain = [one.text for one in texts]
    probs_NC = classify(opened.model, opened.params, opened.tokenizer, plain, longest)
    chosen = [names[number] for number in probs_NC.argmax(axis=-1)]
    known = [(one.label, name) for one, name in zip(texts, chosen) if one.label is not None]
    # A misspelt label would only lower the accuracy.
    for expected, _ in known:
        if expected not in names:
            raise ValueError(f"label {expected!r} is no class; there are {', '.join(names)}")
    accuracy = sum(expected == name for expected, name in known) / len(known) if known else None
    if JSON.value:
        rows = [
            {"text": one.text, "label": name, "probabilities": dict(zip(names, probs_C.tolist()))}
            | ({} if one.label is None else {"expected": one.label})
            for one, name, probs_C in zip(texts, chosen, probs_NC)
        ]
        print(json.dumps({"labels": names, "texts": rows, "accuracy": accuracy}))
        return
    for one, name, probs_C in zip(texts, chosen, probs_NC):
        print(f"{name}\t{probs_C.max():.4f}\t{one.text}")
    if known:
        print(f"accuracy {accuracy:.4f} of {len(known)} labelled texts", file=sys.stderr)


def read_texts(file: Path) -> list[Text]:
    """The texts of a file, without blank lines, and their labels or questions if it has any.
    ValueError with the number of a line that is no text."""
    lines = read_text(file, "--prompt_file").removeprefix("\ufeff").split("\n")
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if file.suffix != ".jsonl":
        return [Text(line) for _, line in numbered]
    return [_labelled(file, number, line) for number, line in numbered]


def _labelled(file: Path, number: int, line: str) -> Text:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    text = record.get("text", record.get("context")) if isinstance(record, dict) else None
    question = record.get("question", "") if isinstance(record, dict) else ""
    if not isinstance(text, str) or not isinstance(question, str):
        raise ValueError(
            f'--prompt_file={file}, line {number} is no object like {{"text": "A fine film."}}: '
            f"{line[:60]!r}"
        )
    label = record.get("label")
    # Numbers are named as in training: 1.0 is class "1".
    whole = isinstance(label, float) and label.is_integer()
    return Text(text, None if label is None else str(int(label) if whole else label), question)


if __name__ == "__main__":
    command.run(main)
