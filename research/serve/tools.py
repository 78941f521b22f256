"""The tools that a request gives the model, in the form of OpenAI's API."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.data.tokenizers import Tokenizer
from research.serve.refusal import Refused, field
from research.serve.tool_calls import CallForm, form_of

MOST = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Tools:
    """Tools that may be called.

    described  what the template gets
    form       how calls are written
    forced     functions of which one must be called, () where the model chooses
    several    whether an answer may have several calls
    """

    described: tuple[Mapping[str, Any], ...]
    form: CallForm
    forced: tuple[dict[str, Any], ...] = ()
    several: bool = True


def tools_of(body: Mapping[str, Any], tokenizer: Tokenizer) -> Tools | None:
    """The tools of a request, None where there are none to call. `Refused` for what is no tool, and
    for a template whose calls are not known."""
    given = body.get("tools") or []
    choice = body.get("tool_choice") or "auto"
    if not isinstance(given, list) or len(given) > MOST or not all(map(_is_tool, given)):
        raise Refused(
            f"tools must be a list of up to {MOST} objects such as "
            '{"type": "function", "function": {"name": "look_up", "parameters": {...}}}',
            param="tools",
        )
    functions = [one["function"] for one in given]
    several = field(body, "parallel_tool_calls", "boolean", True)
    forced = _forced(choice, functions)
    if not given or choice == "none":
        return None
    form = form_of(tokenizer)
    if form is None:
        raise Refused(
            "the model's chat template writes no calls of tools that are known here (those of "
            "Hermes and Qwen, Llama 3.1, Mistral); leave out tools, or serve such a model",
            param="tools",
        )
    return Tools(tuple(given), form, tuple(forced), several)


def _forced(choice: Any, functions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The functions of which one must be called by a `tool_choice`."""
    if choice in ("none", "auto"):
        return []
    if choice == "required" and functions:
        return list(functions)
    named = choice.get("function") if isinstance(choice, Mapping) else None
    name = named.get("name") if isinstance(named, Mapping) else None
    found = [one for one in functions if one["name"] == name]
    if not found:
        raise Refused(
            "tool_choice must be none, auto, required, or an object with the name of one of the "
            "tools",
            param="tool_choice",
        )
    return found


def with_calls(messages: Any) -> Any:
    """The messages with the arguments of their calls as objects, as templates read them: OpenAI's
    form has them as text."""
    if not isinstance(messages, list):
        return messages
    return [_with_objects(one) if isinstance(one, dict) else one for one in messages]


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if calls is None:
        return message
    made = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused("tool_calls must be a list of calls of functions", param="messages")
        made.append({**call, "function": {**function, "arguments": _arguments(function)}})
    return {**message, "tool_calls": made}


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    given = function.get("arguments") or {}
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused(
            "the arguments of a call must be a JSON object, or the text of one", param="messages"
        )
    return value


def _is_tool(one: Any) -> bool:
    function = one.get("function") if isinstance(one, dict) else None
    if not isinstance(function, dict) or one.get("type") != "function":
        return False
    name, parameters = function.get("name"), function.get("parameters")
    return (
        isinstance(name, str)
        and _NAME.fullmatch(name) is not None
        and isinstance(parameters, dict | None)
    )
