"""What a server answers to a request that it does not serve, in the form of OpenAI's API."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any


class Refused(Exception):
    """A request that is not served: what was wrong and what to do, the HTTP status, the field, and
    a name for programs."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str = ""):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code or None}
        return {"error": error}


def field(
    body: Mapping[str, Any],
    name: str,
    kind: str,
    default: Any = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A field of a request; the default where it is missing or null. `kind` is "number", "integer",
    "boolean" or "string". `Refused` for one of another kind, or out of [low, high]."""
    value = body.get(name)
    if value is None:
        return default
    right = {
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "boolean": isinstance(value, bool),
        "string": isinstance(value, str),
    }[kind]
    if not right:
        raise Refused(f"{name}={_shown(value)} must be of type {kind}", param=name)
    # NaN is in no range.
    if low is not None and not value >= low or high is not None and not value <= high:
        wanted = f"in [{low}, {high}]" if high is not None else f"at least {low}"
        raise Refused(f"{name}={_shown(value)} must be {wanted}", param=name)
    return value


def check_names(body: Mapping[str, Any], known: Collection[str], ignored: Collection[str]) -> None:
    """`Refused` for a field that a request cannot have; `ignored` ones change nothing."""
    for name in body:
        if name not in known and name not in ignored:
            [nearest] = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
            raise Refused(
                f"unknown field {_shown(name)}; the nearest is {nearest!r}", param=str(name)[:60]
            )


def check_off(body: Mapping[str, Any], unserved: Mapping[str, Collection[Any]]) -> None:
    """`Refused` for a field that this server has no effect for, unless its value asks for none."""
    for name, off in unserved.items():
        value = body.get(name)
        if value is not None and value not in off:
            raise Refused(f"{name}={_shown(value)} is not served here; leave it out", param=name)


def _shown(value: Any) -> str:
    """A value as it was given, cut to a length that fits in a line."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
