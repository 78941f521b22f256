"""From the JSON of OpenAI's API to requests of the engine: `completion` and `chat`.

What is not served is refused, and so is what is misspelt; fields that change no text are ignored.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from research.data.media.soft_tokens import SoftTokens
from research.data.tokenizers import Tokenizer
from research.infer.attached import encode_attached
from research.infer.conversation import answer_ends
from research.infer.prompts import Prompt
from research.infer.sampling import SamplingConfig, choose_sampling
from research.serve.draw import ALTERNATIVES
from research.serve.formats import FIELDS
from research.serve.grammar import Grammars
from research.serve.penalties import penalties_of
from research.serve.refusal import Refused, check_names, check_off, field
from research.serve.request import Request
from research.serve.tools import Tools, tools_of, with_calls

CHOICES = 128  # most texts of one HTTP request
_SAMPLING = (
    "model max_tokens temperature top_p top_k min_p repetition_penalty n seed stop "
    "stop_token_ids stream stream_options logprobs presence_penalty frequency_penalty logit_bias"
).split()
_COMPLETION = {*_SAMPLING, *FIELDS, "prompt", "echo", "best_of"}
_TOOLS = {"tools", "tool_choice", "parallel_tool_calls"}
_CHAT = {*_SAMPLING, *FIELDS, *_TOOLS, "messages", "max_completion_tokens", "top_logprobs"}
_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Fields without an effect here, and the values with which they have none anywhere.
_UNSERVED: dict[str, tuple] = {
    "suffix": ("",),
    "functions": ([],),
    "modalities": (["text"],),
}


@dataclass(frozen=True)
class Served:
    """What a server knows of its model: names and defaults.

    length    longest text in tokens, prompt included
    begins    whether texts begin with the token that begins a text
    stop_ids  tokens at which generation ends
    sampling  fields of a `SamplingConfig` that the checkpoint recommends
    grammars  reads the grammars that texts must follow; None where none are served
    adapters  names of adapters, each of which is a model of its own for who asks
    soft      the model's encoders of images and sounds; None without any
    reads     which of "image" and "audio" it takes in messages
    """

    name: str
    tokenizer: Tokenizer
    length: int
    begins: bool = True
    stop_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] | None = None
    grammars: Grammars | None = None
    adapters: tuple[str, ...] = ()
    soft: SoftTokens | None = None
    reads: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What may be asked for as a model."""
        return self.name, *self.adapters


@dataclass(frozen=True)
class Asked:
    """A request as the engine gets it, and what its answer is to look like.

    requests  `copies` texts of each prompt, those of a prompt together, of which the likeliest
              `kept` are given
    logprobs  how many likeliest tokens are told at each token; None for no log-probabilities
    tools     tools that may be called, None without any
    model     the model's name that was asked for, or that of an adapter
    """

    requests: list[Request]
    copies: int
    kept: int
    stream: bool
    usage: bool
    echo: bool = False
    logprobs: int | None = None
    tools: Tools | None = None
    model: str = ""


def completion(body: Mapping[str, Any], served: Served) -> Asked:
    """What /v1/completions is asked for. `Refused` for what is wrong."""
    _check(body, _COMPLETION, served)
    logprobs = field(body, "logprobs", "integer", None, 0, ALTERNATIVES)
    copies = field(body, "best_of", "integer", None, 1, CHOICES)
    if copies is not None and body.get("stream"):
        raise Refused(
            f"best_of={copies} is known at the end and cannot be streamed; leave out stream",
            param="best_of",
        )
    return _asked(
        body,
        served,
        prompts_of(body.get("prompt"), "prompt"),
        most=field(body, "max_tokens", "integer", 16, 1),
        stop_ids=served.stop_ids,
        logprobs=logprobs,
        echo=field(body, "echo", "boolean", False),
        copies=copies,
    )


def chat(body: Mapping[str, Any], served: Served) -> Asked:
    """What /v1/chat/completions is asked for; `research.serve.attached` has read the media in its
    messages. `Refused` for what is wrong."""
    _check(body, _CHAT, served)
    top = field(body, "top_logprobs", "integer", None, 0, ALTERNATIVES)
    wanted = field(body, "logprobs", "boolean", False)
    if top is not None and not wanted:
        raise Refused(f"top_logprobs={top} wants logprobs=true; set it", param="top_logprobs")
    # The newer name of two.
    most = field(body, "max_tokens", "integer", served.length, 1)
    tools = tools_of(body, served.tokenizer)
    prompt, media = _conversation(body.get("messages"), served, tools)
    asked = _asked(
        body,
        served,
        [prompt],
        most=field(body, "max_completion_tokens", "integer", most, 1),
        stop_ids=answer_ends(served.tokenizer, served.stop_ids),
        logprobs=(top or 0) if wanted else None,
    )
    requests = [replace(one, media=media) for one in asked.requests]
    return replace(asked, tools=tools, requests=requests)


def _check(body: Mapping[str, Any], known: set[str], served: Served) -> None:
    """`Refused` for another model, unknown fields, and those without an effect."""
    check_model_name(body, served)
    check_names(body, known, _IGNORED | set(_UNSERVED))
    check_off(body, _UNSERVED)


def check_model_name(body: Mapping[str, Any], served: Served) -> str:
    """The model that a request asks for. `Refused` for one that there is not."""
    name = field(body, "model", "string", served.name)
    if name not in served.names:
        raise Refused(
            f"no model {name[:60]!r} here; there is {', '.join(map(repr, served.names))}",
            404,
            "model",
            "model_not_found",
        )
    return name


def _asked(
    body: Mapping[str, Any],
    served: Served,
    prompts: Sequence[Prompt],
    *,
    most: int,
    stop_ids: tuple[int, ...],
    logprobs: int | None,
    echo: bool = False,
    copies: int | None = None,
) -> Asked:
    """The requests for these prompts, with the sampling that the body asks for; `copies` of each,
    by default as many as are kept."""
    kept = field(body, "n", "integer", 1, 1, CHOICES)
    copies = kept if copies is None else copies
    if copies < kept:
        raise Refused(f"best_of={copies} must be at least n={kept}; set it higher", param="best_of")
    if len(prompts) * copies > CHOICES:
        raise Refused(
            f"{len(prompts)} prompts with {copies} texts each are over the {CHOICES} texts of a "
            "request; send several",
            param="prompt",
        )
    sampling = _sampling(body, served, most, stop_ids)
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise Refused("stream_options must be an object", param="stream_options")
    model = check_model_name(body, served)
    first = Request(
        "",
        sampling,
        alternatives=logprobs or 0,
        prompt_logprobs=echo and logprobs is not None,
        adapter=model if model != served.name else "",
        penalties=penalties_of(body, served.tokenizer.vocab_size),
    )
    requests = [
        replace(first, prompt=prompt, copy=copy) for prompt in prompts for copy in range(copies)
    ]
    stream = field(body, "stream", "boolean", False)
    usage = field(options, "include_usage", "boolean", False)
    return Asked(requests, copies, kept, stream, usage, echo, logprobs, model=model)


def _sampling(
    body: Mapping[str, Any], served: Served, most: int, stop_ids: tuple[int, ...]
) -> SamplingConfig:
    """How the texts of a request are drawn and where they end."""
    chosen = {
        "temperature": field(body, "temperature", "number", None, 0, 2),
        "top_p": field(body, "top_p", "number", None, 0, 1),
        "top_k": field(body, "top_k", "integer", None, -1, 2**31 - 1),
        "min_p": field(body, "min_p", "number", None, 0, 1),
        "repetition_penalty": field(body, "repetition_penalty", "number", None, 0.01, 100),
        "max_tokens": min(most, served.length),
        "stop": tuple(_strings(body.get("stop"))),
        "stop_ids": (*stop_ids, *_ids(body.get("stop_token_ids"))),
        # Without a seed every call gives another text.
        "seed": field(body, "seed", "integer", secrets.randbits(32)) % 2**32,
        "bos": served.begins,
    }
    if chosen["top_k"] == -1:  # as others spell it
        chosen["top_k"] = 0
    if chosen["top_p"] == 0:  # the likeliest token, which a share of nothing would be
        chosen |= {"top_p": None, "temperature": 0.0}
    try:
        return choose_sampling(served.sampling or {}, chosen)
    except ValueError as error:
        raise Refused(str(error)) from None


def prompts_of(prompt: Any, name: str) -> list[Prompt]:
    """The prompts in a field of that name: a string, ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(one, str) for one in prompt):
            return list(prompt)
        if _is_ids(prompt):
            return [prompt]
        if all(isinstance(one, list) and _is_ids(one) for one in prompt):
            return list(prompt)
    raise Refused(
        f"{name} must be a string, a list of token ids, or a list of either; give one",
        param=name,
    )


def _conversation(
    messages: Any, served: Served, tools: Tools | None
) -> tuple[Prompt, dict[str, np.ndarray]]:
    """(the ids of a conversation in the model's template, its media)."""
    if not isinstance(messages, list):
        raise Refused("messages must be a list of messages with role and content", param="messages")
    try:
        described = tools.described if tools is not None else ()
        return encode_attached(served.tokenizer, with_calls(messages), served.soft, described)
    except ValueError as error:
        raise Refused(str(error), param="messages") from None


def _strings(stop: Any) -> list[str]:
    """The strings of `stop`, which is null, one or a list."""
    strings = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise Refused(
            "stop must be a string or a list of strings, none of them empty", param="stop"
        )
    if len(strings) > 16:
        raise Refused(f"{len(strings)} strings in stop are over 16; give fewer", param="stop")
    return strings


def _ids(ids: Any) -> list[int]:
    """The ids of `stop_token_ids`."""
    if ids is not None and not (isinstance(ids, list) and (not ids or _is_ids(ids))):
        raise Refused("stop_token_ids must be a list of token ids", param="stop_token_ids")
    return ids or []


def _is_ids(values: list) -> bool:
    return all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in values)
