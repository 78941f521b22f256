"""Dataclasses from plain dictionaries and back. A field or value that does not fit is refused in
one line that names the field."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict, config_dict


def parse_arg(arg: str, **defaults: Any) -> ConfigDict:
    """The string after the colon of `--config=FILE:ARG` as typed values.

        parse_arg("model=gpt2,smoke", model="llama3_8b", smoke=False)  # model "gpt2", smoke True

    Types are those of the defaults; a bare name is True. A value of text may have commas: what
    stands behind one belongs to the value if it makes it the path of a file, or names no argument,
    as in "data=stdlib:0.7,shakespeare:0.3". ValueError for an unknown name and for a value of
    another type.
    """
    values = dict(defaults)
    for part in _split_arg(arg, defaults):
        name, given, text = part.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown; {nearest(name, defaults)}")
        default = defaults[name]
        # bool("false") is True, so a word is compared instead.
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


def _split_arg(arg: str, defaults: Mapping[str, Any]) -> Iterator[str]:
    """The parts NAME or NAME=VALUE of an argument, cut at the commas that are in no value."""
    pieces = [piece for piece in arg.split(",") if piece]
    while pieces:
        name, given, value = pieces[0].partition("=")
        count = 1
        if given and isinstance(defaults.get(name), str):
            # The longest path first: a folder `a` may lie beside the file `a,b`.
            ends = range(len(pieces), 1, -1)
            paths = (end for end in ends if _exists(",".join([value, *pieces[1:end]])))
            count = next(paths, _first_named(pieces, defaults))
        yield ",".join(pieces[:count])
        pieces = pieces[count:]


def _first_named(pieces: Sequence[str], known: Mapping[str, Any]) -> int:
    """The number of the first piece, but for piece 0, that is an argument, or one that is
    misspelt."""
    for number, piece in enumerate(pieces[1:], 1):
        name, given, _ = piece.partition("=")
        # Part of a mixture or of a list, such as "b:0.3", is like no name, while "smok" is meant as
        # one and would else become a puzzling value.
        if given or difflib.get_close_matches(name, known, n=1, cutoff=0.75):
            return number
    return len(pieces)


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a name, or the home of an unknown user
        return False


def build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind` with these field values; sections inside it are dicts.

    `where` is the path in error messages, such as "config.data". ValueError for an unknown field
    and for a value of another type than the field's.
    """
    hints = get_type_hints(kind)
    refuse_unknown(where, values, hints)
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = build(hints[name], value, f"{where}.{name}")
        elif isinstance(value, (list, tuple)):
            value = tuple(
                tuple(item) if isinstance(item, (list, tuple)) else item for item in value
            )
        elif value is not None or not isinstance(hints[name], UnionType):
            wanted = _present(hints[name])
            # `--config.optimizer.learning_rate=1` is meant as 1.0. The other direction would round,
            # and type() because True is an int.
            value = float(value) if wanted is float and type(value) is int else value
            if type(value) is not wanted:
                raise ValueError(f"{where}.{name}={value!r} must be of type {wanted.__name__}")
        built[name] = value
    return kind(**built)


def refuse_unknown(where: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """ValueError for the first of `values` that is not in `known`, with the nearest known name."""
    for name in values:
        if name not in known:
            raise ValueError(f"{where} has no field {name!r}; {nearest(name, known)}")


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """The end of an error line: the known name most like `name`, and a list of all known names if
    they are fewer than 20."""
    # A cutoff of 0 always finds a name, however unlike it is.
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    all_names = f"; there are {', '.join(known)}" if len(known) < 20 else ""
    return f"the nearest is {near[0]!r}{all_names}"


def defaults(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass by field name. A default of None becomes a typed placeholder,
    because a ConfigDict would not let a flag override None."""
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
    """A typed placeholder, None until it is set, for each field and each field of a section."""
    return {
        name: placeholders(hint)
        if dataclasses.is_dataclass(hint)
        else config_dict.placeholder(_present(hint))
        for name, hint in get_type_hints(kind).items()
    }


def may_change(kind: type, path: str) -> bool:
    """True if a resumed run may change the field at `path`, such as "train.steps": the field, or a
    section that it is in, has the metadata {"resume": True}."""
    name, _, rest = path.partition(".")
    known = {field.name: field for field in dataclasses.fields(kind)}
    if name not in known:  # one that no longer exists has no metadata
        return False
    if known[name].metadata.get("resume"):
        return True
    section = get_type_hints(kind)[name]
    return bool(rest) and dataclasses.is_dataclass(section) and may_change(section, rest)
