"""A conversation line by line: commands, questions and answers."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ATTACH = {"/image": "image", "/audio": "audio"}
COMMANDS = {
    "/help": "lists these commands",
    "/image": "FILE puts a picture before the next line",
    "/audio": "FILE puts a sound before it, a WAV",
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
    attach: Callable[[str, Path], Any],
) -> None:
    """Reads lines until there are no more, and answers each one with the conversation so far as
    context. A line whose first word is a slash and a name is a command and not said to the model;
    a space in front of it makes it a question. `attach` makes a part of a message's content of a
    kind, "image" or "audio", and a file, or says in a ValueError why it cannot."""
    beginning = [] if system is None else [{"role": "system", "content": system}]
    messages, attached = list(beginning), list[Any]()
    while (line := read()) is not None:
        # "/usr/bin is what?" is a question, "/quit now" is not.
        name = line.split()[0] if re.match(r"/[A-Za-z?]\w*(\s|$)", line) else ""
        if name == "/quit":
            break
        if name == "/reset":
            messages, attached = list(beginning), []
        elif name in ATTACH:
            attached += _attached(ATTACH[name], line.removeprefix(name).strip(), attach)
        elif name:
            wrong = "" if name in COMMANDS else f"there is no command {name}; "
            commands = "; ".join(f"{known} {does}" for known, does in COMMANDS.items())
            note(f"{wrong}{commands}; with a space in front a line is said to the model")
        elif line.strip():
            content = [*attached, line.strip()] if attached else line.strip()
            attached = []
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": say(answer(messages))})


def _attached(kind: str, file: str, attach: Callable[[str, Path], Any]) -> list[Any]:
    """The part of a content that a file becomes; [] for one that cannot be read, after a line."""
    try:
        if not file:
            raise ValueError("the command wants a file, such as /image cat.png")
        part = attach(kind, Path(file).expanduser())
    except ValueError as error:
        note(f"{file}: {error}" if file else str(error))
        return []
    note(f"{file} goes with the next line")
    return [part]


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
