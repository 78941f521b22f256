"""What a path is that is no checkpoint of ours to open: an adapter, a Git-LFS pointer, a folder of
Orbax's, and others that people have at hand, each by its name and with what to do.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from research.downloads.parts import one_model
from research.files import read_json
from research.interop.huggingface.folder import TOKENIZERS, tokenizer_folder
from research.interop.peft.config import FILE as ADAPTER

_LFS = b"version https://git-lfs.github.com/spec/"
# How the names of files begin that are read of a folder.
_READ = ("config.", "model", "params", "adapter_", "tokenizer", "vocab", "merges", "spiece", "sent")
_POINTER_BYTES = 1024  # the specification's limit for a pointer file
# Files that Orbax leaves in a folder of arrays.
_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".whl")
_TABLES = ("tokenizer.json", "tokenizer_config.json", *TOKENIZERS)
_OTHERS = {
    ".onnx": "a file of ONNX",
    ".msgpack": "Flax weights of an older release of transformers",
    ".h5": "a file of Keras",
    ".tflite": "a file of TensorFlow Lite",
}


@dataclass(frozen=True)
class Stranger:
    """`kind`: one word; `what`: "it is ..." for a reader; `remedy`: what the user can do."""

    kind: str
    what: str
    remedy: str


def name_stranger(path: Path, name: str) -> Stranger | None:
    """What `path` is, if it is of a kind that is known here; None for all else. `name` is the path
    as the user spelt it."""
    return next((found for one in _KINDS if (found := one(path, name)) is not None), None)


def _remote(path: Path, name: str) -> Stranger | None:
    if re.match(r"(gs|s3|https?|hdfs|az)://", name):
        return Stranger("remote", "an address of remote storage", "copy it to a folder here first")
    # One slash and nothing that begins a path: how models of the hub are called.
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not path.exists():
        return Stranger(
            "hub",
            "no path here",
            f"if it is a model of the Hugging Face hub, write hf:{name}",
        )
    return None


def _pointer(path: Path, name: str) -> Stranger | None:
    # Pointers to what nobody reads, such as pickles beside safetensors, are none of our business.
    files = [path, *(file for start in _READ for file in sorted(path.glob(f"{start}*")))]
    found = [file.name for file in files if file.is_file() and _is_pointer(file)]
    if not found:
        return None
    return Stranger(
        "lfs",
        f"a checkout with Git-LFS pointers in the place of {len(found)} of its files, such as "
        f"{found[0]}"
        if path.is_dir()
        else "a Git-LFS pointer, not the file itself",
        "run git lfs pull in that folder",
    )


def _is_pointer(file: Path) -> bool:
    if file.stat().st_size > _POINTER_BYTES:
        return False
    with open(file, "rb") as opened:
        return opened.read(len(_LFS)) == _LFS


def _adapter(path: Path, name: str) -> Stranger | None:
    # Some tunes keep the adapter's settings beside merged weights; then it is a checkpoint.
    if not (path / ADAPTER).is_file() or any(path.glob("model*.safetensors")):
        return None
    values = _object(path / ADAPTER)
    base = values.get("base_model_name_or_path") or "its base"
    return Stranger(
        "adapter",
        f"an adapter of peft's ({values.get('peft_type')}) for {base}",
        f"give the base as the checkpoint and --adapter={name}",
    )


def _orbax(path: Path, name: str) -> Stranger | None:
    if _described(path) or not any((path / file).exists() for file in _ORBAX):
        return None
    # A step of one of our runs lies in WORKDIR/checkpoints/STEP/ITEM.
    for folder in path.absolute().parents:
        if folder.name == "checkpoints" and (folder.parent / "config.json").is_file():
            remedy = f"give the run's workdir {folder.parent}"
            return Stranger("orbax", "a step of a run", remedy)
    return Stranger(
        "orbax",
        "a folder of Orbax's, which does not say what model its arrays are of",
        "export it as a Hugging Face folder with the program that wrote it",
    )


def _bare(path: Path, name: str) -> Stranger | None:
    if path.suffix == ".safetensors" and path.is_file():
        whole = (path.parent / "config.json").is_file()
        remedy = f"give the folder {path.parent}" if whole else "its config.json is needed too"
        return Stranger("safetensors", "a file of tensors, without the model's config", remedy)
    if path.is_dir() and any(path.glob("*.safetensors")) and not _described(path):
        remedy = "put the config.json of the model into the folder"
        return Stranger("shards", "a folder of safetensors files without a config.json", remedy)
    return None


def _described(path: Path) -> bool:
    return any((path / file).is_file() for file in ("config.json", "model.json"))


def _single(path: Path, name: str) -> Stranger | None:
    """A file that belongs into a folder, or that holds one."""
    if not path.is_file():
        return None
    if path.suffix.lower() in _ARCHIVES:
        return Stranger("archive", "an archive", "unpack it and give the folder")
    if path.name in _TABLES:
        what = "a file of a tokenizer, without a model"
        return Stranger("tokenizer", what, f"give the model's folder: {_folder(path)}")
    if path.suffix == ".json":
        what = "a file of settings, without the weights"
        return Stranger("settings", what, f"give the model's folder: {_folder(path)}")
    return None


def _folder(path: Path) -> str:
    return str(path.parent) if _described(path.parent) else "one with config.json and weights"


def _pickled(path: Path, name: str) -> Stranger | None:
    files = sorted(path.glob("*")) if path.is_dir() and not _described(path) else [path]
    found = [file for file in files if file.suffix in _PICKLES and file.is_file()]
    if not found:
        return None
    return Stranger(
        "pickle",
        f"pickled weights ({found[0].name}), which are never read, for opening them runs their "
        "code",
        "load them with transformers and save_pretrained(..., safe_serialization=True) elsewhere",
    )


def _other(path: Path, name: str) -> Stranger | None:
    if path.is_file() and path.suffix in _OTHERS:
        return Stranger(path.suffix[1:], _OTHERS[path.suffix], "give a Hugging Face or GGUF export")
    several = sorted(path.glob("*.gguf")) if path.is_dir() and not _described(path) else []
    if several and not one_model(file.name for file in several):
        return Stranger(
            "ggufs", f"a folder of {len(several)} GGUF files", f"give one, such as {several[0]}"
        )
    if path.is_dir() and not _described(path) and tokenizer_folder(path):
        remedy = "give it as a tokenizer (config.data.tokenizer), or add config.json and weights"
        return Stranger("tokenizer", "a folder with a tokenizer and no model", remedy)
    return None


# The first that knows a path names it: a pointer may lie in a folder of any kind.
_KINDS: tuple[Callable[[Path, str], Stranger | None], ...] = (
    _remote,
    _pointer,
    _adapter,
    _orbax,
    _bare,
    _single,
    _pickled,
    _other,
)


def _object(file: Path) -> dict:
    """The JSON object in a file, {} without one: whoever opens the file says what is wrong."""
    try:
        values = read_json(file) if file.is_file() else {}
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
