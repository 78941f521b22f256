"""Dataclasses from plain dictionaries and back: what a config's fields may be, and one line for
what they may not."""

import dataclasses
import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict, config_dict


def parse_arg(arg: str, **defaults: Any) -> ConfigDict:
    """The string behind the colon of `--config=FILE:ARG` as typed values: "model=gpt2,smoke" sets
    model and smoke.

    Types are those of the defaults; a bare name is True. ValueError for an unknown name.
    """
    values = dict(defaults)
    for part in filter(None, arg.split(",")):
        name, given, text = part.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown; {nearest(name, defaults)}")
        default = defaults[name]
        if isinstance(default, bool):
            if text.lower() not in ("", "true", "false", "1", "0"):
                raise ValueError(f"config argument {part!r}: {name} is true or false")
            values[name] = not given or text.lower() in ("true", "1")
        else:
            try:
                values[name] = type(default)(text)
            except ValueError:
                raise ValueError(
                    f"config argument {part!r}: {name} is of type {type(default).__name__}"
                ) from None
    return ConfigDict(values)


def build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a dict; unknown fields, and values of another type than the field's default,
    are refused."""
    hints = get_type_hints(kind)
    refuse_unknown(where, values, hints)
    made = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = build(hints[name], value, f"{where}.{name}")
        elif isinstance(value, (list, tuple)):
            value = tuple(
                tuple(item) if isinstance(item, (list, tuple)) else item for item in value
            )
        elif value is not None or not isinstance(hints[name], UnionType):
            wanted = _present(hints[name])
            value = float(value) if wanted is float and type(value) is int else value
            if type(value) is not wanted:
                raise ValueError(f"{where}.{name}={value!r} must be of type {wanted.__name__}")
        made[name] = value
    return kind(**made)


def refuse_unknown(where: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """ValueError for a name that is not known, with the nearest that is."""
    for name in values:
        if name not in known:
            raise ValueError(f"{where} has no field {name!r}; {nearest(name, known)}")


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """The end of an error line: the known name most like this one, and all of them where they are
    few."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    all_names = f"; there are {', '.join(known)}" if len(known) < 20 else ""
    return f"the nearest is {near[0]!r}{all_names}"


def defaults(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass; a field that may be None and is gets a placeholder, so that it
    can be overridden."""
    plain, hints = kind(), get_type_hints(kind)
    return {
        f.name: config_dict.placeholder(_present(hints[f.name]))
        if getattr(plain, f.name) is None
        else getattr(plain, f.name)
        for f in dataclasses.fields(kind)
        if f.init
    }


def _present(hint: Any) -> Any:
    """int of `int | None`; the type behind a subscript, tuple of `tuple[str, ...]`."""
    kinds = (
        [kind for kind in get_args(hint) if kind is not type(None)]
        if isinstance(hint, UnionType)
        else [hint]
    )
    return get_origin(kinds[0]) or kinds[0]


def placeholders(kind: type) -> dict[str, Any]:
    """A typed placeholder for each field."""
    return {
        name: placeholders(hint)
        if dataclasses.is_dataclass(hint)
        else config_dict.placeholder(hint)
        for name, hint in get_type_hints(kind).items()
    }


def may_change(kind: type, path: str) -> bool:
    """Whether a resumed run may change the field at "section.name": the field, or a section it is
    in, has {"resume": True} for its metadata."""
    name, _, rest = path.partition(".")
    known = {field.name: field for field in dataclasses.fields(kind)}
    if name not in known:
        return False
    if known[name].metadata.get("resume"):
        return True
    section = get_type_hints(kind)[name]
    return bool(rest) and dataclasses.is_dataclass(section) and may_change(section, rest)
