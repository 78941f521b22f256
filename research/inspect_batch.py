"""Prints what a run trains on: python -m research.inspect_batch --config=configs/quickstart.py --rows=2

The first rows of the first batch, token by token between bars: a line for each stretch of one segment and one side of the
loss, with its positions, and in conversations with who speaks, the assistant or the others. What is asked for is bold and
marked LOSS, the rest is only read; a token to be predicted in another's place follows an arrow. Colours show the segments
in a terminal; what is piped has none.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from research import command

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:ARGUMENTS; --config.FIELD=VALUE overrides")
ROWS = flags.DEFINE_integer("rows", 2, "rows of the batch to print", lower_bound=1)
COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")


class Stream(NamedTuple):
    """A row's tokens as they are read: lists of one length. `loss` says which are asked for, `instead` what is to be
    predicted in place of each, None where that is the token itself."""

    name: str
    tokens: list[int]
    segments: list[int]
    positions: list[int]
    loss: list[bool]
    instead: list[int | None]


def main(arguments: list[str]) -> int:
    """Reads the flags and prints the rows; the exit code."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; flags are --config, --rows and --config.FIELD=VALUE")
    config = command.read_config(CONFIG)
    # Here, so that a wrong flag is answered before JAX is imported.
    from rich.console import Console

    from research.data.loader import train_batches
    from research.experiment import from_config
    from research.objectives.choose import make_objective
    from research.start import open_data

    experiment = from_config(config)
    corpus = open_data(experiment)
    objective = make_objective(experiment.objective, corpus.tokenizer)
    windows = corpus.train_windows(
        objective.window_length(experiment.data.sequence_length), objective.overlap, experiment.train.seed
    )
    with train_batches(windows, objective.example, seed=experiment.train.seed, global_batch=ROWS.value, threads=0) as batches:
        _, batch = next(batches)
    console = Console(highlight=False, soft_wrap=True)
    for number in range(ROWS.value):
        row = {name: rows[number] for name, rows in batch.items()}
        chat = experiment.objective.reads == "conversations"
        for line in describe(number, row, corpus.tokenizer, corpus.labels, chat):
            console.print(line, soft_wrap=not console.is_terminal)
    return command.DONE


def describe(
    number: int, row: dict[str, Any], tokenizer: Any, labels: tuple[str, ...] = (), chat: bool = False
) -> Iterator[Any]:
    """The lines of a row, as rich texts; `labels` are names of classes, `chat` says that the loss is the assistant's."""
    from rich.text import Text

    asked, real = int((row["weights"] > 0).sum()), int((row["segments"] > 0).sum())
    texts = int(row["segments"].max(initial=0))
    heading = f"row {number}: {texts} segment{'s' * (texts != 1)}, {real} tokens of {len(row['inputs'])}, loss on {asked}"
    yield Text(heading, style="bold underline")
    for stream in streams(row):
        if stream.name:
            yield Text(stream.name, style="italic")
        yield from (_stretch(stream, start, stop, tokenizer, chat) for start, stop in stretches(stream))
    if len(row["targets"]) == 1 != len(row["inputs"]):
        target = int(row["targets"][0])
        name = f" {json.dumps(labels[target])}" if target < len(labels) else ""
        yield Text(f"  LOSS  class {target}{name}", style="bold")
    yield Text("")


def streams(row: dict[str, Any]) -> list[Stream]:
    """The sequences of a row without their padding; a causal model's inputs and targets are one sequence."""
    fields = {name: values.tolist() for name, values in row.items()}
    tokens, targets, segments, positions = (fields[name] for name in ("inputs", "targets", "segments", "positions"))
    loss = [weight > 0 for weight in fields["weights"]]
    none: list[int | None] = [None] * len(tokens)
    if "encoder_inputs" in fields:
        encoder = [fields[f"encoder_{name}"] for name in ("inputs", "segments", "positions")]
        quiet = [False] * len(encoder[0])
        found = [
            Stream("encoder reads", *encoder, quiet, [None] * len(quiet)),
            Stream("decoder writes", targets, segments, positions, loss, none),
        ]
    elif len(targets) != len(tokens):
        found = [Stream("", tokens, segments, positions, [False] * len(tokens), none)]
    elif targets[:-1] == tokens[1:]:
        # The last target is no input; it continues the last segment where it is asked for.
        last = ([targets[-1]], [segments[-1]], [positions[-1] + 1]) if loss[-1] else ([], [], [])
        lists = [values + more for values, more in zip((tokens, segments, positions), last)]
        asked = [False, *loss][: len(lists[0])]
        found = [Stream("", *lists, asked, [None] * len(asked))]
    else:
        instead = [t if said and t != shown else None for t, said, shown in zip(targets, loss, tokens)]
        found = [Stream("", tokens, segments, positions, loss, instead)]
    return [_without_padding(stream) for stream in found]


def stretches(stream: Stream) -> Iterator[tuple[int, int]]:
    """(start, stop) of each stretch of one segment and one side of the loss."""
    start = 0
    for at in range(1, len(stream.tokens) + 1):
        ends = at == len(stream.tokens)
        if ends or (stream.segments[at], stream.loss[at]) != (stream.segments[start], stream.loss[start]):
            yield start, at
            start = at


def _without_padding(stream: Stream) -> Stream:
    kept = [i for i, segment in enumerate(stream.segments) if segment > 0]
    return Stream(stream.name, *([values[i] for i in kept] for values in stream[1:]))


def _stretch(stream: Stream, start: int, stop: int, tokenizer: Any, chat: bool) -> Any:
    from rich.text import Text

    segment, loss = stream.segments[start], stream.loss[start]
    places = f"{stream.positions[start]}-{stream.positions[stop - 1]}"
    role = ("assistant  " if loss else "others     ") if chat else ""
    line = Text(f"  {'LOSS' if loss else '    '}  {role}{segment:>3}  {places:<11}", style="dim" if not loss else "")
    style = f"{'bold ' if loss else 'dim '}{COLOURS[(segment - 1) % len(COLOURS)]}"
    for at in range(start, stop):
        line.append("|", style="dim")
        line.append(shown(tokenizer, stream.tokens[at]), style=style)
        if stream.instead[at] is not None:
            line.append(f"→{shown(tokenizer, stream.instead[at])}", style=f"{style} underline")
    line.append("|", style="dim")
    return line


def shown(tokenizer: Any, token: int) -> str:
    """A token so that it stays on its line and cannot steer the terminal; one that is part of a letter by its number."""
    text = tokenizer.decode([token])
    if not text or "\ufffd" in text:
        return f"<{token}>"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    command.run(main)
