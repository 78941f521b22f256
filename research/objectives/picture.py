"""Rows of a batch as coloured text, for `research.inspect_batch`: tokens, speakers, targets of
the loss, segments and positions."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.text import Text

from research.data.prompts import record_of
from research.data.tokenizers import Tokenizer

COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")


class Stream(NamedTuple):
    """One sequence of a row, as lists of equal length.

    loss     true for tokens that are predicted
    instead  the token to predict in place of the one shown, None where they are the same
    """

    name: str
    tokens: list[int]
    segments: list[int]
    positions: list[int]
    loss: list[bool]
    instead: list[int | None]


def describe(
    number: int,
    row: dict[str, Any],
    tokenizer: Tokenizer,
    labels: tuple[str, ...] = (),
    chat: bool = False,
) -> Iterator[Text]:
    """The lines that show row `number` of a batch, as rich texts.

    `labels` are the names of the classes of a classifier. With `chat` each line says who speaks:
    tokens with a loss are the assistant's.
    """
    # Positive weights are targets; segments above 0 are tokens that are not padding.
    asked, real = int((row["weights"] > 0).sum()), int((row["segments"] > 0).sum())
    texts = int(row["segments"].max(initial=0))
    heading = (
        f"row {number}: {texts} segment{'s' * (texts != 1)}, "
        f"{real} tokens of {len(row['inputs'])}, loss on {asked}"
    )
    yield Text(heading, style="bold underline")
    of_words = bool(labels) and len(row["targets"]) == len(row["inputs"])
    for stream in streams(row, of_words):
        if stream.name:
            yield Text(stream.name, style="italic")
        yield from (
            _stretch(stream, start, stop, tokenizer, chat) for start, stop in stretches(stream)
        )
    # A classifier's target is a class: it stands below the text, by name where it has one.
    if len(row["targets"]) == 1 != len(row["inputs"]):
        target = int(row["targets"][0])
        name = f" {json.dumps(labels[target])}" if target < len(labels) else ""
        yield Text(f"  LOSS  class {target}{name}", style="bold")
    if of_words:
        told = " ".join(
            f"{shown(tokenizer, token)}={labels[target]}"
            for token, target, weight in zip(row["inputs"], row["targets"], row["weights"])
            if weight > 0
        )
        yield Text(f"  LOSS  first tokens of words: {told}", style="bold")
    if len(row["targets"]) == 2 != len(row["inputs"]):
        # The row's first token says that no answer stands in it.
        first, last = map(int, row["targets"])
        text = "".join(shown(tokenizer, int(n)) for n in row["inputs"][first : last + 1])
        answer = f"answer {first}-{last} {json.dumps(text)}" if last else "no answer"
        yield Text(f"  LOSS  {answer}", style="bold")
    yield Text("")


def describe_prompt(
    number: int, window: dict[str, Any], tokenizer: Tokenizer, texts: int, most: int
) -> Iterator[Text]:
    """The lines that show a window of `research.data.prompts.Prompts`, which `texts` texts of at
    most `most` tokens will continue, with what rewards read of its record."""
    ids, record = window["prompt"].tolist(), record_of(window)
    heading = f"prompt {number}: {len(ids)} tokens; {texts} texts of at most {most} continue it"
    yield Text(heading, style="bold underline")
    quiet = [False] * len(ids)
    stream = Stream("", ids, [1] * len(ids), list(range(len(ids))), quiet, [None] * len(ids))
    yield _stretch(stream, 0, len(ids), tokenizer, False)
    read = {name: value for name, value in record.items() if name != "prompt"}
    yield Text(f"  record  {json.dumps(read)}")
    yield Text("")


def streams(row: dict[str, Any], of_words: bool = False) -> list[Stream]:
    """The sequences of a row, without padding: two for an encoder-decoder, else one. Inputs and
    targets of a causal model are merged, since they are the same text one token apart. `of_words`
    says that targets are the classes of words and no tokens."""
    fields = {name: values.tolist() for name, values in row.items()}
    tokens, targets, segments, positions = (
        fields[name] for name in ("inputs", "targets", "segments", "positions")
    )
    # Any positive weight: an objective may weigh its targets.
    loss = [weight > 0 for weight in fields["weights"]]
    none: list[int | None] = [None] * len(tokens)
    # The objective is not known here: the layout of the fields says which kind of row it is.
    if "encoder_inputs" in fields:
        encoder = [fields[f"encoder_{name}"] for name in ("inputs", "segments", "positions")]
        quiet = [False] * len(encoder[0])
        result = [
            Stream("encoder reads", *encoder, quiet, [None] * len(quiet)),
            Stream("decoder writes", targets, segments, positions, loss, none),
        ]
    elif of_words:
        result = [Stream("", tokens, segments, positions, loss, none)]
    elif len(targets) != len(tokens):
        # A classifier: its one target is a class and no token; or the two ends of an answer.
        result = [Stream("", tokens, segments, positions, [False] * len(tokens), none)]
    elif targets[:-1] == tokens[1:]:
        # The last target is no input; it continues the last segment where it is asked for.
        last = ([targets[-1]], [segments[-1]], [positions[-1] + 1]) if loss[-1] else ([], [], [])
        lists = [values + more for values, more in zip((tokens, segments, positions), last)]
        asked = [False, *loss][: len(lists[0])]
        result = [Stream("", *lists, asked, [None] * len(asked))]
    else:
        instead = [
            t if said and t != shown else None for t, said, shown in zip(targets, loss, tokens)
        ]
        # Masked language modelling: a target stands at the place of its input.
        result = [Stream("", tokens, segments, positions, loss, instead)]
    return [_without_padding(stream) for stream in result]


def stretches(stream: Stream) -> Iterator[tuple[int, int]]:
    """(start, stop) of each longest run of tokens of one segment that all carry a loss or all
    carry none; each is printed on a line of its own."""
    start = 0
    for at in range(1, len(stream.tokens) + 1):
        ends = at == len(stream.tokens)
        if ends or (stream.segments[at], stream.loss[at]) != (
            stream.segments[start],
            stream.loss[start],
        ):
            yield start, at
            start = at


def _without_padding(stream: Stream) -> Stream:
    kept = [i for i, segment in enumerate(stream.segments) if segment > 0]
    return Stream(stream.name, *([values[i] for i in kept] for values in stream[1:]))


def _stretch(stream: Stream, start: int, stop: int, tokenizer: Tokenizer, chat: bool) -> Text:
    segment, loss = stream.segments[start], stream.loss[start]
    places = f"{stream.positions[start]}-{stream.positions[stop - 1]}"
    # In conversations the tokens with a loss are the assistant's; messages of weight 0 are not.
    role = ""
    if chat:
        role = "assistant  " if loss else "others     "
    line = Text(
        f"  {'LOSS' if loss else '    '}  {role}{segment:>3}  {places:<11}",
        style="dim" if not loss else "",
    )
    # Colours take turns by segment, so that neighbouring texts of a packed row stand out.
    style = f"{'bold ' if loss else 'dim '}{COLOURS[(segment - 1) % len(COLOURS)]}"
    for at in range(start, stop):
        line.append("|", style="dim")
        line.append(shown(tokenizer, stream.tokens[at]), style=style)
        if stream.instead[at] is not None:
            line.append(f"→{shown(tokenizer, stream.instead[at])}", style=f"{style} underline")
    line.append("|", style="dim")
    return line


def shown(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token with line ends and control characters escaped, or "<ID>" for a token
    that holds only some bytes of a character."""
    text = tokenizer.decode([token])
    # Byte-level tokens may end within a UTF-8 character, which decodes to the replacement
    # character.
    if not text or "\ufffd" in text:
        return f"<{token}>"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
