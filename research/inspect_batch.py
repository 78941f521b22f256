"""Prints what a run trains on: python -m research.inspect_batch --config=configs/quickstart.py
--rows=2

The first rows of the first batch, token by token between bars: a line for each stretch of one
segment and one side of the loss, with its positions, and in conversations with who speaks, the
assistant or the others. What is asked for is bold and marked LOSS, the rest is only read; a token
to be predicted in another's place follows an arrow. Colours show the segments in a terminal; what
is piped has none.
"""

from absl import flags
from ml_collections import config_flags

from research import command

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:ARGUMENTS; --config.FIELD=VALUE overrides"
)
ROWS = flags.DEFINE_integer("rows", 2, "rows of the batch to print", lower_bound=1)


def main(arguments: list[str]) -> int:
    """Reads the flags and prints the rows; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; flags are --config, --rows and "
            f"--config.FIELD=VALUE"
        )
    config = command.read_config(CONFIG)
    # Here, so that a wrong flag is answered before JAX is imported.
    from rich.console import Console

    from research.data.loader import train_batches
    from research.objectives.choose import make_objective
    from research.objectives.picture import describe
    from research.run.resolve import from_config
    from research.run.start import open_data

    experiment = from_config(config)
    corpus = open_data(experiment)
    objective = make_objective(experiment.objective, corpus.tokenizer)
    windows = corpus.train_windows(
        objective.window_length(experiment.data.sequence_length),
        objective.overlap,
        experiment.train.seed,
    )
    with train_batches(
        windows, objective.example, seed=experiment.train.seed, global_batch=ROWS.value, threads=0
    ) as batches:
        _, batch = next(batches)
    console = Console(highlight=False)
    for number in range(ROWS.value):
        row = {name: rows[number] for name, rows in batch.items()}
        chat = objective.answers_chats
        for line in describe(number, row, corpus.tokenizer, corpus.labels, chat):
            console.print(line, soft_wrap=not console.is_terminal)
    return command.DONE


if __name__ == "__main__":
    command.run(main)
