"""What a server can be asked for, in the form of OpenAPI 3.1, which clients and fuzzers read."""

from typing import Any

from research.serve.asked import CHOICES, Served
from research.serve.draw import ALTERNATIVES
from research.serve.embeddings import TEXTS

_TEXT = {"type": "string"}
_FLAG = {"type": ["boolean", "null"]}
_OBJECT = {"type": "object"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_REFUSED = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _TEXT, "type": _TEXT},
        }
    },
}


def _number(low: float, high: float, kind: str = "number") -> dict[str, Any]:
    return {"type": [kind, "null"], "minimum": low, "maximum": high}


def _prompts(most: int) -> dict[str, Any]:
    many = {"type": "array", "minItems": 1, "maxItems": most}
    return {"anyOf": [_TEXT, _IDS, {**many, "items": _TEXT}, {**many, "items": _IDS}]}


def description(served: Served) -> dict[str, Any]:
    """The description. A request that it allows may be refused all the same, such as one whose
    prompt is too long."""
    names = {"enum": list(served.names)}
    shared = _shared(names)
    message = {"type": "object", "required": ["role"], "properties": {"role": _TEXT}}
    parts = {"type": "array", "items": _OBJECT}
    content = {"anyOf": [{"type": ["string", "null"]}, parts]}
    message["properties"] = {"role": _TEXT, "content": content}
    completion = shared | {
        "prompt": _prompts(CHOICES),
        "echo": _FLAG,
        "logprobs": _number(0, ALTERNATIVES, "integer"),
        "best_of": _number(1, CHOICES, "integer"),
    }
    chat = shared | {
        "messages": {"type": "array", "items": message, "minItems": 1},
        "max_completion_tokens": _number(1, 2**31, "integer"),
        "logprobs": _FLAG,
        "top_logprobs": _number(0, ALTERNATIVES, "integer"),
        "tools": {"type": "array", "items": _OBJECT},
        "tool_choice": {"anyOf": [_TEXT, _OBJECT]},
    }
    vectors = {
        "model": names,
        "input": _prompts(TEXTS),
        "encoding_format": {"enum": ["float", "base64"]},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Graft", "version": "1"},
        "paths": {
            "/health": _get("Whether texts are written"),
            "/metrics": _get("Counts and times for Prometheus"),
            "/v1/models": _get("The model and its adapters"),
            "/v1/completions": _post("Continues prompts", completion, "prompt"),
            "/v1/chat/completions": _post("Answers a conversation", chat, "messages"),
            "/v1/embeddings": _post("Vectors of texts", vectors, "input"),
            "/tokenize": _post("The ids of a text", {"prompt": _TEXT}, "prompt"),
            "/detokenize": _post("The text of ids", {"tokens": {**_IDS, "minItems": 0}}, "tokens"),
            "/tokenizer_info": _get("Special tokens and the template of chats"),
        },
    }


def _shared(names: dict[str, Any]) -> dict[str, Any]:
    """Fields of completions and of conversations."""
    return {
        "model": names,
        "max_tokens": _number(1, 2**31, "integer"),
        "temperature": _number(0, 2),
        "top_p": _number(0, 1),
        "top_k": _number(-1, 2**31 - 1, "integer"),
        "min_p": _number(0, 1),
        "repetition_penalty": _number(0.01, 100),
        "presence_penalty": _number(-2, 2),
        "frequency_penalty": _number(-2, 2),
        "logit_bias": {"type": ["object", "null"], "additionalProperties": _number(-100, 100)},
        "n": _number(1, CHOICES, "integer"),
        "seed": {"type": ["integer", "null"]},
        "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 16}]},
        "stop_token_ids": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "stream": _FLAG,
        "response_format": _OBJECT,
        "regex": _TEXT,
        "grammar": _TEXT,
    }


def _get(what: str) -> dict[str, Any]:
    return {"get": {"summary": what, "responses": _responses()}}


def _post(what: str, properties: dict[str, Any], required: str) -> dict[str, Any]:
    schema = {"type": "object", "required": [required], "properties": properties}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"post": {"summary": what, "requestBody": body, "responses": _responses()}}


def _responses() -> dict[str, Any]:
    refused = {"description": "Refused", "content": {"application/json": {"schema": _REFUSED}}}
    return {"200": {"description": "The answer"}, "default": refused}
