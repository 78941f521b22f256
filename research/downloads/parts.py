"""Names of the parts in which large GGUF files are published: NAME-00001-of-00003.gguf, as
llama.cpp's `gguf-split` cuts them."""

import re
from collections.abc import Iterable, Iterator

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def is_part(name: str) -> bool:
    """True for the name of a part.

    >>> is_part("model-00002-of-00003.gguf"), is_part("model.gguf")
    (True, False)
    """
    match = _PART.fullmatch(name)
    return match is not None and 1 <= int(match[2]) <= int(match[3])


def parts_of(name: str) -> Iterator[str]:
    """The names of all parts of the file that `name` is a part of, in order; of another file its
    own.

    >>> list(parts_of("folder/model-00002-of-00002.gguf"))
    ['folder/model-00001-of-00002.gguf', 'folder/model-00002-of-00002.gguf']
    """
    match = _PART.fullmatch(name)
    if match is None or not is_part(name):
        yield name
        return
    for n in range(1, int(match[3]) + 1):
        yield f"{match[1]}-{n:05}-of-{match[3]}.gguf"


def one_model(names: Iterable[str]) -> bool:
    """True if these GGUF files are one model: a single file, or parts of the same one.

    >>> one_model(["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"])
    True
    >>> one_model(["a.gguf", "b.gguf"])
    False
    """
    # The same first part; of a file that is no part, the file.
    return len({next(parts_of(name)) for name in names}) == 1
