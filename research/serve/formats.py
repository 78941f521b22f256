"""The form that a request wants its text in: `response_format` of OpenAI's API, and beside it a
regular expression (`regex`) or a grammar in Lark's form (`grammar`)."""

import json
from collections.abc import Mapping
from typing import Any

from research.serve.grammar import Grammar, Grammars
from research.serve.refusal import Refused, field
from research.serve.tools import Tools

FIELDS = {"response_format", "regex", "grammar"}
SPELT_BYTES = 256 * 1024  # longest grammar
_TYPES = ("text", "json_object", "json_schema")


def grammar_of(
    body: Mapping[str, Any], grammars: Grammars | None, tools: Tools | None = None
) -> Grammar | None:
    """The grammar that a request's text must follow, None for any text; that of a call where one of
    its tools must be called. `Refused` for several, for one that cannot be read, and where the
    server reads none."""
    wanted = _wanted(body)
    if tools is not None and tools.forced:
        wanted.append(("tool_choice", "call", tools))
    if not wanted:
        return None
    if len(wanted) > 1:
        names = " and ".join(name for name, _, _ in wanted)
        raise Refused(f"{names} are both given; give one of them", param=wanted[1][0])
    [(name, kind, spec)] = wanted
    if grammars is None:
        raise Refused(f"{name} is not served here; leave it out", param=name)
    if kind != "call" and len(json.dumps(spec)) > SPELT_BYTES:
        raise Refused(f"{name} is over {SPELT_BYTES:,} bytes; give a shorter one", param=name)
    try:
        if kind == "call":
            return grammars.read("lark", _call(spec, grammars))
        return grammars.read(kind, spec)
    except ValueError as error:
        raise Refused(str(error), param=name) from None


def _call(tools: Tools, grammars: Grammars) -> str:
    """The grammar of a call of one of the tools that are forced."""
    form, schema = tools.form, json.dumps(tools.form.schema(tools.forced))
    parts = [grammars.spell(form.opens), f"%json {schema}", grammars.spell(form.closes)]
    return f"start: {' '.join(filter(None, parts))}"


def _wanted(body: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(field, kind of grammar, grammar) of each that a request gives."""
    wanted = []
    if (schema := _schema(body.get("response_format"))) is not None:
        wanted.append(("response_format", "json_schema", schema))
    for name, kind in (("regex", "regex"), ("grammar", "lark")):
        if (spec := field(body, name, "string")) is not None:
            wanted.append((name, kind, spec))
    return wanted


def _schema(form: Any) -> Any:
    """The schema of a `response_format`, None for text."""
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind not in _TYPES:
        raise Refused(
            f"response_format must be an object whose type is one of {', '.join(_TYPES)}",
            param="response_format",
        )
    if kind == "json_object":
        return {"type": "object"}
    if kind == "text":
        return None
    named = form.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping | bool):
        raise Refused(
            "response_format.json_schema must be an object with a schema, which is an object",
            param="response_format",
        )
    return schema
