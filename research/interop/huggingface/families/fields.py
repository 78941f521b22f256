"""Typed reading of the fields of a foreign config.json: a value of the wrong type is a one-line
ValueError that names the field and the value.
"""

from collections.abc import Mapping
from typing import Any

from research.models.config import ModelConfig

_MISSING = object()
# transformers' names of activations, as ours. Its three spellings of the tanh approximation are
# different code for the same function ("gelu_fast" multiplies by the constant 0.7978845608, which
# is sqrt(2 / pi)), and "swish" is the older name of "silu".
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
# The way back takes the spelling that most published config.json files have.
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu", "relu": "relu"}


def integer(values: Mapping[str, Any], name: str, default: Any = _MISSING) -> int:
    """The field as a positive integer; `default` where it is absent or null.

    ValueError for another value, and for an absent field without a default.
    """
    value = _get(values, name, default)
    # `type(...) is int`, as JSON's true would pass for 1 under isinstance. The bound keeps sizes
    # computed from it, such as d_model * layers, out of reach of an overflow.
    if type(value) is not int or not 0 < value < 2**40:
        # A default may be 0 ("no window"), which is refused when the file itself says so.
        if value != default:
            raise ValueError(f"config.json has {name}={value!r}; wanted a positive integer")
    return value


def index(values: Mapping[str, Any], name: str, default: int) -> int:
    """The field as an integer of 0 or more, such as the id of a token; `default` where it is absent
    or null. Errors as `integer`."""
    value = _get(values, name, default)
    if type(value) is not int or not 0 <= value < 2**40:
        raise ValueError(f"config.json has {name}={value!r}; wanted 0 or more")
    return value


def number(values: Mapping[str, Any], name: str, default: Any = _MISSING) -> float:
    """The field as a finite float; `default` where it is absent or null. Errors as `integer`."""
    value = _get(values, name, default)
    # Python's JSON reader accepts NaN and Infinity; both fail the comparison.
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise ValueError(f"config.json has {name}={value!r}; wanted a number")
    return float(value)


def flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    """The field as a bool; `default` where it is absent or null. Errors as `integer`."""
    value = _get(values, name, default)
    if type(value) is not bool:
        raise ValueError(f"config.json has {name}={value!r}; wanted true or false")
    return value


def activation(values: Mapping[str, Any], name: str, default: str) -> str:
    """Our name of the activation in a field, "gelu_tanh" for "gelu_new"; `default` is transformers'
    name. ValueError for an activation that no layer here computes."""
    value = _get(values, name, default)
    if value not in ACTIVATIONS:
        raise ValueError(f"config.json has {name}={value!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def refuse(values: Mapping[str, Any], **only: Any) -> None:
    """Refuses a model whose settings our layers do not compute: ValueError where a field is present
    with another value than the one given.

        refuse(values, pretraining_tp=1)  # absent, null and 1 pass
    """
    for name, value in only.items():
        # Absent and null mean the class's default, which is the value that we compute.
        got = values.get(name)
        if got is not None and got != value:
            raise ValueError(f"config.json has {name}={got!r}; only {name}={value!r} is supported")


def read_start(values: Mapping[str, Any], *, start: int | None, end: int, pad: int) -> str:
    """`decoder_start` of a model with the ids of a config.json, by default those given: "end" where
    its decoder first reads the end of a text."""
    first, padding = values.get("decoder_start_token_id", start), values.get("pad_token_id", pad)
    ends = values.get("eos_token_id", end)
    ends = ends if isinstance(ends, list) else [ends]
    return "end" if first in ends and first != padding else "pad"


def write_start(c: ModelConfig, *, end: int, pad: int) -> dict[str, Any]:
    """The ids of config.json that say `c.decoder_start`. They are a class's defaults, and stay only
    where the model's own are not known."""
    first = end if c.decoder_start == "end" else pad
    return {"decoder_start_token_id": first, "eos_token_id": end, "pad_token_id": pad}


def _get(values: Mapping[str, Any], name: str, default: Any) -> Any:
    # transformers writes null for "not set", so null and absent are one.
    value = values.get(name)
    if value is not None:
        return value
    if default is _MISSING:
        raise ValueError(f"config.json has no {name}; restore it from the source")
    return default
