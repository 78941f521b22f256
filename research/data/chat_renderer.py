"""The process in which chat templates are rendered; `research.data.chat_sandbox` starts it and
reads its answers.

A template is downloaded with a model, so it is a stranger's program. jinja2's sandbox keeps it away
from Python's internals but does not make it stop. The kernel does: it limits the processor time of
each rendering and the memory of the process, and a template that takes more kills this process and
not the run. Requests and answers are JSON, one on each line.
"""

import contextlib
import json
import resource
import secrets
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 1.0  # a template takes a millisecond
MEMORY_BYTES = 1 << 30
OUTPUT_CHARACTERS = 1 << 24  # some four million tokens
_LINE = 200  # characters of an error


class TooLong(Exception):
    """The text would have more than OUTPUT_CHARACTERS characters."""


class Generation(jinja2.ext.Extension):
    """The tag `{% generation %}...{% endgeneration %}`, with which templates enclose what the
    assistant says; transformers has it too.

    The enclosed text is written between two marks. They are drawn at random for each rendering, so
    no message can contain them.
    """

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The syntax tree of one block; called by jinja2."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        start, stop = self.environment.marks
        return f"{start}{caller()}{stop}"


def make_environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """A jinja2 environment with the functions and settings of transformers' apply_chat_template.
    Its `strftime_now` formats the time `now`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    # jinja2's own tojson escapes <, > and & for HTML; transformers replaces it, too.
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": now.strftime}
    return environment


def render(
    template: jinja2.Template, variables: dict[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """(the text, the spans of its generation blocks). TooLong for more than OUTPUT_CHARACTERS."""
    marks = template.environment.marks = tuple(f"\0{secrets.token_hex(16)}" for _ in range(2))
    # In pieces, so that an endless text is stopped before it fills the memory.
    pieces, size = [], 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > OUTPUT_CHARACTERS:
            raise TooLong(f"writes over {OUTPUT_CHARACTERS:,} characters")
        pieces.append(piece)
    return unmarked("".join(pieces), *marks)


def unmarked(text: str, start: str, stop: str) -> tuple[str, list[tuple[int, int]]]:
    """(the text without its marks, the (start, stop) that each pair of them enclosed). A block
    inside another one is part of the outer block."""
    parts, spans, length, depth, begin = [], [], 0, 0, 0
    while text:
        # The next mark of either kind; step changes the depth of nesting.
        marks = [(text.find(mark), step) for mark, step in ((start, 1), (stop, -1)) if mark in text]
        at, step = min(marks, default=(len(text), 0))
        parts.append(text[:at])
        length += at
        text = text[at + len(start) :]
        begin = length if step == 1 and depth == 0 else begin
        depth += step
        if step == -1 and depth == 0 and length > begin:
            spans.append((begin, length))
    return "".join(parts), spans


def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers to the `jobs` of a request, {"text", "spans"} each.

    The first error ends the list: {"refused": why} if the template rejects this conversation, which
    others may survive, {"error": why} if the template itself is unusable.
    """
    # An error ends the list: the caller asks for all of it or takes none.
    answers = []
    try:
        _limit_cpu(CPU_SECONDS)
        template = make_environment(datetime.fromisoformat(request["now"])).from_string(
            request["template"]
        )
        for variables in request["jobs"]:
            _limit_cpu(CPU_SECONDS)
            text, spans = render(template, variables)
            answers.append({"text": text, "spans": spans})
    except (
        jinja2.TemplateSyntaxError,
        jinja2.sandbox.SecurityError,
        MemoryError,
        RecursionError,
        TooLong,
    ) as error:
        answers.append({"error": _line(error)})
    except Exception as error:  # whatever its expressions raise on these messages
        answers.append({"refused": _line(error)})
    finally:
        _limit_cpu(0)
    return answers


def _limit_cpu(seconds: float) -> None:
    # The signal's default action is the kernel's, so it ends a loop inside C code too.
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _line(error: Exception) -> str:
    names = {
        MemoryError: "takes more memory than there is for it",
        RecursionError: "recurses without end",
    }
    text = " ".join(str(error).split()) or names.get(type(error), type(error).__name__)
    where = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return names.get(type(error), text[:_LINE] + where)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def main() -> None:
    """Answers requests from standard input until it is closed."""
    for limit, size in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),  # it writes no files
        (resource.RLIMIT_CORE, 0),
    ):
        # macOS has no limit of memory; that of time still holds.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (size, size))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which closes the pipe
    # A line is a request, so neither side needs to announce a length.
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
