"""Values of a quantization_config, checked: what is not known to be computed alike is refused."""

from collections.abc import Mapping, Sequence
from typing import Any


def choice(
    settings: Mapping[str, Any], name: str, known: Sequence[Any], default: Any = None
) -> Any:
    """`settings[name]`, or `default` where it is missing or null. ValueError for a value that is
    none of `known`."""
    value = settings.get(name)
    value = default if value is None else value
    if value not in known or isinstance(value, bool):
        listed = ", ".join(map(repr, known))
        raise ValueError(
            f"quantization_config has {name}={value!r}; supported: {listed}. Take the unquantized "
            "model"
        )
    return value


def positive(settings: Mapping[str, Any], name: str, default: int) -> int:
    """`settings[name]` as a positive number; `default` where it is missing, null or -1, which stand
    for one group of all inputs."""
    value = settings.get(name)
    if value is None or value == -1:
        return default
    if type(value) is not int or value < 1:
        raise ValueError(f"quantization_config has {name}={value!r}; wanted a positive number")
    return value
