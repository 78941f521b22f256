"""model.bin of CTranslate2: named arrays behind a short header, all little-endian.

    u32 version, name of the class, u32 its revision, u32 number of arrays
    each: name, u8 axes, u32 of each axis, u8 type, u32 bytes, the bytes
    u32 number of aliases, each: alias, name

Names are a u16 length, which counts a zero at their end, and the characters (the converter's
python/ctranslate2/specs/model_spec.py, binary version 6).
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from research.interop.storage.tensors import Tensor, as_dtype

VERSION = 6
_TYPES = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16", 5: "bfloat16"}
# Beyond any published model's; a damaged number is larger.
_MOST_ARRAYS = 100_000


@dataclass(frozen=True)
class ModelBin:
    """An open file: the class of model, its arrays and what else each is called; nothing is read
    before `read`."""

    path: Path
    spec: str
    names: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    _places: Mapping[str, int] = field(repr=False)

    def read(self, name: str) -> np.ndarray:
        """The whole array."""
        tensor = self.names[name]
        count = math.prod(tensor.shape)
        with open(self.path, "rb") as file:
            file.seek(self._places[name])
            values = np.fromfile(file, as_dtype(tensor.dtype), count)
        if len(values) != count:
            raise ValueError(f"{self.path} ends within {name}; fetch it again")
        return values.reshape(tensor.shape)


def open_model_bin(path: Path) -> ModelBin:
    """The arrays of a model.bin. ValueError for a file of another version, one that is cut off and
    one that is no model.bin."""
    size = path.stat().st_size
    names, places = {}, {}
    with open(path, "rb") as file:
        try:
            [version] = _unpack(file, "I")
            if version != VERSION:
                raise ValueError(
                    f"{path} is no model.bin of version {VERSION} (it begins with {version}); "
                    "convert the model again with ct2-transformers-converter"
                )
            spec = _name(file)
            _, count = _unpack(file, "II")
            if count > _MOST_ARRAYS:
                raise ValueError(f"{path} says it has {count:,} arrays; fetch it again")
            for _ in range(count):
                name = _name(file)
                names[name], length = _entry(file, name)
                places[name] = file.tell()
                if places[name] + length > size:
                    raise ValueError(f"{path} ends within {name}; fetch it again")
                file.seek(length, 1)
            [count] = _unpack(file, "I")
            aliases = {_name(file): _name(file) for _ in range(min(count, _MOST_ARRAYS))}
        except (struct.error, UnicodeDecodeError):
            raise ValueError(f"{path} ends within its header; fetch it again") from None
    return ModelBin(path, spec, names, aliases, places)


def _entry(file: BinaryIO, name: str) -> tuple[Tensor, int]:
    """(shape and type, bytes) of the next array. ValueError where they do not agree."""
    [axes] = _unpack(file, "B")
    shape = _unpack(file, "I" * axes)
    kind, length = _unpack(file, "BI")
    if kind not in _TYPES:
        raise ValueError(f"{name} is of type {kind}; known are {', '.join(_TYPES.values())}")
    if math.prod(shape) * as_dtype(_TYPES[kind]).itemsize != length:
        raise ValueError(f"{name} of shape {list(shape)} has {length:,} bytes; fetch it again")
    return Tensor(shape, _TYPES[kind]), length


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _name(file: BinaryIO) -> str:
    [length] = _unpack(file, "H")
    return file.read(length).rstrip(b"\0").decode()
