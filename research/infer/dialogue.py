"""A conversation line by line: commands, questions and answers."""

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

COMMANDS = {
    "/help": "lists these commands",
    "/reset": "forgets the conversation",
    "/quit": "ends it, as Ctrl-D does",
}

Message = dict[str, Any]


def note(line: str) -> None:
    """A line to the user that is no answer: on standard error, so that a pipe has answers alone."""
    print(f"({line})", file=sys.stderr)


def converse(
    read: Callable[[], str | None],
    answer: Callable[[list[Message]], Iterator[str]],
    system: str | None,
) -> None:
    """Reads lines until there are no more, and answers each one with the conversation so far as
    context. A line whose first word is a slash and a name is a command and not said to the model;
    a space in front of it makes it a question."""
    beginning = [] if system is None else [{"role": "system", "content": system}]
    messages = list(beginning)
    while (line := read()) is not None:
        # "/usr/bin is what?" is a question, "/quit now" is not.
        name = line.split()[0] if re.match(r"/[A-Za-z?]\w*(\s|$)", line) else ""
        if name == "/quit":
            break
        if name == "/reset":
            messages = list(beginning)
        elif name:
            wrong = "" if name in COMMANDS else f"there is no command {name}; "
            commands = "; ".join(f"{known} {does}" for known, does in COMMANDS.items())
            note(f"{wrong}{commands}; with a space in front a line is said to the model")
        elif line.strip():
            messages.append({"role": "user", "content": line.strip()})
            messages.append({"role": "assistant", "content": say(answer(messages))})


def say(pieces: Iterator[str]) -> str:
    """Prints an answer piece by piece. Returns its text, up to where Ctrl-C ended it."""
    answer = []
    try:
        for piece in pieces:
            answer.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass  # ends this answer; the conversation goes on with what was written of it
    print()
    return "".join(answer)
