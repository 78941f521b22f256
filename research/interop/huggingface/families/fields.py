"""Reading a config.json that somebody else wrote: each value is of the type it has to be, or the
line says what it is."""

from collections.abc import Mapping
from typing import Any

_MISSING = object()
# transformers' names of activations, as ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu", "relu": "relu"}


def integer(values: Mapping[str, Any], name: str, default: Any = _MISSING) -> int:
    """A positive integer; `default` where the name is absent or null."""
    value = _get(values, name, default)
    if type(value) is not int or not 0 < value < 2**40:
        if value != default:
            raise ValueError(f"config.json has {name}={value!r}; wanted a positive integer")
    return value


def number(values: Mapping[str, Any], name: str, default: Any = _MISSING) -> float:
    """A finite number; `default` where the name is absent or null."""
    value = _get(values, name, default)
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise ValueError(f"config.json has {name}={value!r}; wanted a number")
    return float(value)


def flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false; `default` where the name is absent or null."""
    value = _get(values, name, default)
    if type(value) is not bool:
        raise ValueError(f"config.json has {name}={value!r}; wanted true or false")
    return value


def activation(values: Mapping[str, Any], name: str, default: str) -> str:
    """Our name of an activation."""
    value = _get(values, name, default)
    if value not in ACTIVATIONS:
        raise ValueError(f"config.json has {name}={value!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def refuse(values: Mapping[str, Any], **only: Any) -> None:
    """ValueError where a field is there with another value than the one that our layers compute."""
    for name, value in only.items():
        got = values.get(name)
        if got is not None and got != value:
            raise ValueError(f"config.json has {name}={got!r}; only {name}={value!r} is supported")


def _get(values: Mapping[str, Any], name: str, default: Any) -> Any:
    value = values.get(name)
    if value is not None:
        return value
    if default is _MISSING:
        raise ValueError(f"config.json has no {name}; restore it from the source")
    return default
