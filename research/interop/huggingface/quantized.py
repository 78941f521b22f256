"""The quantized matrices of a Hugging Face folder, in whatever format its config.json names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.interop.bitsandbytes import read as bitsandbytes
from research.interop.bitsandbytes.matrices import open_quantized
from research.interop.huggingface import mxfp4
from research.interop.quantized import matrix
from research.interop.quantized.methods import open_method, read_settings
from research.interop.quantized.read import leaves_by_path
from research.interop.quantized.stacks import joined
from research.interop.storage.family import Family
from research.interop.storage.modules import modules
from research.interop.storage.parameter import Codes
from research.interop.storage.tensors import Tensors
from research.models.config import ModelConfig


@dataclass(frozen=True)
class Stored:
    """The tensors of a folder as if nothing were quantized, and what is: the format's `name` for
    people ("" for none), `codes` by path of our tree, and why tensors are `unused`."""

    tensors: Tensors
    name: str = ""
    codes: Mapping[str, Codes] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """The tensors of a folder before its model is known: `names` are those that they would have if
    nothing were quantized."""

    tensors: Tensors
    settings: Mapping[str, Any] | None
    found: matrix.Opened | None

    @property
    def names(self) -> set[str]:
        names = set(self.tensors.names)
        if self.found is None:
            return names
        return names - self.found.beside - self.found.unused.keys() | self.found.matrices.keys()

    def read(self, c: ModelConfig, family: Family, actual: Mapping[str, str]) -> Stored:
        """The tensors of a model with this config; `actual` has the names in the file by those of
        the family's rules. ValueError for damaged matrices."""
        if self.settings is None:
            return Stored(joined(self.tensors))
        if self.settings.get("quant_method") == mxfp4.FORMAT:
            packed = mxfp4.open_mxfp4(self.tensors)
            codes = mxfp4.read_codes(c, family.rules(c), packed, actual)
            return Stored(packed, mxfp4.FORMAT.upper(), codes)
        known = modules(c, family)
        # GPT-2's matrices are [in, out], and are quantized turned over.
        turned = {actual.get(f"{name}.weight") for name, module in known.items() if module.conv}
        if self.found is not None:
            dense = matrix.read_dense(self.found, self.tensors, turned.__contains__)
            codes = leaves_by_path(c, known, dense, actual)
            # MLX's gpt-oss has its experts in MXFP4 beside matrices of another kind.
            packed = mxfp4.open_mxfp4(joined(dense))
            codes |= mxfp4.read_codes(c, family.rules(c), packed, actual)
            return Stored(packed, self.found.name, codes, self.found.unused)
        theirs = open_quantized(self.settings, self.tensors, turned.__contains__)
        codes = bitsandbytes.leaves_by_path(c, known, theirs, actual)
        kinds = sorted({one.format for one in theirs.matrices.values()})
        name = f"bitsandbytes, {' and '.join(kinds)}" if kinds else ""
        return Stored(theirs, name, codes)


def open_stored(folder: Path, values: Mapping[str, Any], tensors: Tensors) -> Opened:
    """The tensors of a folder whose config.json has `values`. ValueError for a quantized format
    that is not supported."""
    settings = read_settings(folder, values)
    if settings is None or settings.get("quant_method") in ("bitsandbytes", mxfp4.FORMAT):
        return Opened(tensors, settings, None)
    return Opened(tensors, settings, open_method(settings, tensors))
