"""What lies in the files of a checkpoint, whether it can be opened or not: sizes, and the types in
which tensors are stored.
"""

import json
import math
from collections import Counter
from pathlib import Path

from research.interop.gguf.file import open_gguf
from research.interop.huggingface.folder import plan_folder
from research.interop.huggingface.mxfp4 import FORMAT as MXFP4
from research.interop.huggingface.mxfp4 import written_packed
from research.interop.storage.checkpoint import Checkpoint

_HEADER_BYTES = 100_000_000  # the longest header that the safetensors library reads


def sizes(path: Path) -> dict[str, int]:
    """The bytes of a file, or of every file in a folder and below it, by name. Hidden files, such
    as the `.cache` that downloaders leave behind, are left out."""
    if path.is_file():
        return {path.name: path.stat().st_size}
    found = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {
        name.as_posix(): file.stat().st_size
        for name, file in found.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def stored_types(path: Path) -> dict[str, dict[str, int]]:
    """{"tensors", "values"} by the name of each type, such as BF16 or Q4_1, in which the tensors of
    a GGUF file, a safetensors file or a folder of them are stored; quantized types that safetensors
    has no name for count as what they are packed in. {} where no header can be read."""
    files = [path] if path.is_file() else sorted(path.glob("*"))
    tensors: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for file in files:
        for kind, count in _tensors(file):
            tensors[kind] += 1
            values[kind] += count
    return {kind: {"tensors": n, "values": values[kind]} for kind, n in tensors.most_common()}


def written_out(checkpoint: Checkpoint, to: str, dtype: str = "") -> list[str]:
    """The line on the codes of a quantized checkpoint, which a conversion to the format `to` and
    `dtype` ("" for the checkpoint's own) does not keep; none where it keeps them all."""
    # Experts in MXFP4 alone are written as they were read.
    kept = dtype in ("", MXFP4) and _has_mxfp4(checkpoint, to)
    if not checkpoint.quantized or (kept and checkpoint.stored_as == MXFP4.upper()):
        return []
    types = dtype or ", ".join(sorted({one.dtype for one in checkpoint.parameters.values()}))
    stored = f" ({checkpoint.stored_as})" if checkpoint.stored_as else ""
    but = ", but for its experts in MXFP4" if kept else ""
    return [f"the source's quantized weights{stored} are written out as {types}{but}"]


def _has_mxfp4(checkpoint: Checkpoint, to: str) -> bool:
    """True if the checkpoint has experts in MXFP4, and the format `to` has such of its model: all
    of GGUF's have, and of Hugging Face's classes gpt-oss."""
    forms = [set(codes.forms.values()) for codes in checkpoint.codes.values()]
    if {MXFP4} not in forms or to != "hf":
        return {MXFP4} in forms and to == "gguf"
    rules = plan_folder(checkpoint)[0].rules(checkpoint.config)
    return bool(written_packed(checkpoint, rules)[0])


def _tensors(file: Path) -> list[tuple[str, int]]:
    """(type, number of values) of each tensor in a file; [] for files of other kinds, and for
    damaged ones, of which the reader of their format has its own to say."""
    try:
        if file.suffix == ".gguf":
            with open_gguf(file) as gguf:
                return [(gguf.types[n], math.prod(one.shape)) for n, one in gguf.names.items()]
        if file.suffix == ".safetensors":
            header = _header(file)
            return [(str(one["dtype"]), math.prod(one["shape"])) for one in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return []


def _header(file: Path) -> dict:
    """The header as it is: readers of weights refuse types that they do not compute with."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length)) if length <= _HEADER_BYTES else {}
    header.pop("__metadata__", None)
    return header
