"""Prints what a run trains on: python -m research.inspect_batch --config=configs/quickstart.py
--rows=2

The first rows of the first batch are printed token by token, with bars between tokens. A line
holds tokens of one segment that all carry a loss or all carry none, with their positions; of
conversations it also says whether the assistant speaks or others do (a message of the assistant
with weight 0 is only read, so it counts among the others). Predicted tokens are bold and
marked LOSS, all others are only read. Where the token to predict is another one than the token
shown, it follows an arrow. Of a run that learns from its own texts these are the first prompts,
with the record that rewards read. In a terminal segments have colours; piped output has none.

--page=FILE.html also writes the rows as a page with their pictures, as the encoder gets them.
"""

import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from research import command

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARGUMENTS; --config.FIELD=VALUE overrides"
)
PAGE = flags.DEFINE_string("page", "", "a file .html that shows the rows with their pictures, too")
ROWS = flags.DEFINE_integer("rows", 2, "rows of the batch to print", lower_bound=1)


def main(arguments: list[str]) -> int:
    """Prints the rows that the flags ask for, and returns the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; flags are --config, --rows, --page and "
            f"--config.FIELD=VALUE"
        )
    config = command.read_config(CONFIG)
    # Here, so that a wrong flag is answered before JAX is imported.
    from rich.console import Console

    from research.objectives.choose import make_objective
    from research.run.resolve import from_config
    from research.run.start import open_data

    console = Console(highlight=False)
    _print_notes(console)
    experiment = from_config(config)
    corpus = open_data(experiment)
    objective: Any = make_objective(experiment.objective, corpus.tokenizer, experiment.model)
    if objective.reads_reference:  # computed at the start of a run, and nothing to look at
        objective = replace(objective, reads_reference=False)
    length = objective.window_length(experiment.data.sequence_length)
    windows = corpus.train_windows(length, objective.overlap, experiment.train.seed)
    for line in objective.shortfalls(windows):
        logging.warning(line)
    # For its notes, such as on records that are in the training data too.
    corpus.heldout_windows(length, objective.overlap)
    rows, pictures = _pictures(experiment, corpus, objective, windows)
    lines = [list(picture) for picture in pictures]
    for line in itertools.chain(*lines):
        console.print(line, soft_wrap=not console.is_terminal)
    if PAGE.value:
        _write_page(Path(PAGE.value), lines, rows, experiment.data.source)
        console.print(f"the page is {PAGE.value}", markup=False)
    return command.DONE


def _write_page(file: Path, lines: list[Any], rows: list[Any], source: str) -> None:
    """The rows with their pictures as a page of one file that opens offline."""
    from research.objectives.picture_page import row_section
    from research.training.page import page

    sections = [row_section(*pair) for pair in zip(lines, rows)]
    try:
        file.write_text(page("Rows of a batch", source, sections, "the first batch of a run"))
    except OSError as error:
        raise ValueError(f"--page={file} cannot be written: {error.strerror}") from None


def _pictures(
    experiment: Any, corpus: Any, objective: Any, windows: Any
) -> tuple[list[dict[str, Any]], list[Any]]:
    """(rows of the first batch, the lines of each), or of the first prompts of a run on its own
    texts."""
    from research.data.loader import train_batches
    from research.objectives.picture import describe, describe_prompt

    tokenizer, shown, c = corpus.tokenizer, range(ROWS.value), experiment.objective
    if objective.writes_texts:
        prompts = [windows[at] for at in shown]
        settings = tokenizer, c.samples, c.max_tokens
        return prompts, [describe_prompt(at, prompts[at], *settings) for at in shown]
    # The windows of step 0 of a run with this many rows a batch; no threads for one batch.
    seed = experiment.train.seed
    with train_batches(
        windows, objective.example, seed=seed, global_batch=ROWS.value, threads=0
    ) as batches:
        _, batch = next(batches)
    rows = [{name: values[at] for name, values in batch.items()} for at in shown]
    names = (corpus.labels, objective.answers_chats)
    return rows, [describe(at, row, tokenizer, *names) for at, row in zip(shown, rows)]


def _print_notes(console: Any) -> None:
    """Prints what the data layer has to say, such as what it leaves out, before the rows. Here it
    is a part of the answer; in a run it goes to standard error."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda note: console.print(  # type: ignore[method-assign]
        note.getMessage(), style="yellow", markup=False, soft_wrap=True
    )
    # Other libraries log under names of their own, and go on to standard error.
    handler.addFilter(lambda note: note.name == "root")
    for other in logging.getLogger().handlers:
        other.addFilter(lambda note: note.name != "root")
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    command.run(main)
