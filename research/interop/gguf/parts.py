"""A model in several GGUF files, as llama.cpp's `gguf-split` cuts it: the settings and the
tokenizer are in the first part, and each has its own tensors."""

from contextlib import ExitStack
from pathlib import Path

from research.downloads.parts import parts_of
from research.interop.gguf.file import Gguf, open_gguf

_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


def open_whole(path: Path) -> Gguf:
    """The GGUF file at a path with all of its parts, if it is one of several; any part may be
    given. ValueError as `open_gguf`, and for a part that is missing, is none of this model's, or
    repeats a tensor."""
    with ExitStack() as opened:
        one = opened.enter_context(open_gguf(path))
        count = one.metadata.get(_COUNT)
        if not isinstance(count, int) or count < 2:
            opened.pop_all()
            return one
        names = list(parts_of(path.name))
        if len(names) != count:
            raise ValueError(
                f"{path} is one of {count} parts by its {_COUNT}, and its name does not say so; "
                "give the parts back their names, such as model-00001-of-00003.gguf"
            )
        missing = [name for name in names if not (path.parent / name).is_file()]
        if missing:
            raise ValueError(
                f"{path.parent / missing[0]} is missing, one of {count} parts; fetch it too"
            )
        parts = [
            one if name == path.name else opened.enter_context(open_gguf(path.parent / name))
            for name in names
        ]
        whole = _joined(parts)
        # The caller closes them.
        opened.pop_all()
        return whole


def _joined(parts: list[Gguf]) -> Gguf:
    names, types, places = {}, {}, {}
    for n, part in enumerate(parts):
        found = part.metadata.get(_NUMBER), part.metadata.get(_COUNT)
        if found != (n, len(parts)):
            raise ValueError(
                f"{part.path} says {_NUMBER}={found[0]} and {_COUNT}={found[1]}; wanted {n} and "
                f"{len(parts)}: the parts are of several models"
            )
        if twice := names.keys() & part.names.keys():
            raise ValueError(f"{part.path} has {min(twice)!r}, which an earlier part has too")
        names |= part.names
        types |= part.types
        places |= part.places
    first = parts[0]
    wanted = first.metadata.get(_TENSORS, len(names))
    if wanted != len(names):
        raise ValueError(
            f"{first.path} and the other parts have {len(names)} tensors; wanted {wanted} by its "
            f"{_TENSORS}: the parts are of several models"
        )
    files = tuple(file for part in parts for file in part.files)
    return Gguf(first.path, names, types, first.metadata, places, files)
