"""Models of the Hugging Face hub: "hf:ORG/NAME", "hf:ORG/NAME@REVISION" and, for one of a
repository's GGUF files, "hf:ORG/NAME/FILE.gguf". They lie where huggingface_hub keeps its downloads
(HF_HOME), so that other programs share them.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.downloads.parts import one_model, parts_of

PREFIX = "hf:"
_SPELLING = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+\.gguf))?(?:@([^@\s]+))?")
# The weights that are read, in one file or in shards; never variants such as model.fp16.
_WEIGHTS = re.compile(r"(model|params|adapter_model)(-\d+-of-\d+)?\.safetensors")
# Settings and tokenizers lie beside the weights, but for the pooling of sentence-transformers and
# templates by name.
_SETTINGS = re.compile(
    r"[^/]+\.(json|jinja|model|spm)|merges\.txt|vocab\.txt|1_Pooling/config\.json"
    r"|additional_chat_templates/[^/]+\.jinja"
)
# Any of these is there if a repository was fetched at all.
_SIGNS = ("config.json", "model.json", "adapter_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class _Spelling:
    """The parts of hf:ORG/NAME/FILE@REVISION: `name` is ORG/NAME, `file` "" without one."""

    name: str
    file: str
    revision: str | None

    @classmethod
    def read(cls, text: str) -> "_Spelling":
        """The parts of a spelling. ValueError for another text."""
        match = _SPELLING.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is no model of the hub; wanted hf:ORG/NAME, hf:ORG/NAME@REVISION or "
                "hf:ORG/NAME/FILE.gguf"
            )
        return cls(match[1], match[2] or "", match[3])


def hub_path(spelling: str, weights: bool = True) -> Path:
    """The folder, or the GGUF file, of a spelling on this machine; what of it is needed is fetched
    if it is not in huggingface_hub's cache. Without `weights` these stay away.

    ValueError, one line, for a model or revision that is not there, one whose terms were not
    accepted, a repository without weights that can be read, and for one that is neither in the
    cache nor within reach.
    """
    wanted = _Spelling.read(spelling)
    try:
        import huggingface_hub as hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise ValueError(
            f"{spelling} wants the package huggingface_hub: pip install 'graft-research[hub]'"
        ) from None
    # The package reads the variable when it is imported, which may have been earlier.
    endpoint = os.environ.get("HF_ENDPOINT") or hub.constants.ENDPOINT
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(wanted.name, revision=wanted.revision)
        names = _needed(spelling, wanted, [one.rfilename for one in info.siblings or ()], weights)
        folder = hub.snapshot_download(
            wanted.name, revision=wanted.revision, allow_patterns=names, endpoint=endpoint
        )
    except Exception as error:
        found = _cached(hub, wanted) if _unreachable(hub, error) else None
        if found is None:
            raise _refusal(hub, spelling, wanted, endpoint, error) from None
        return found
    return _result(Path(folder), wanted, names)


def pinned(path: Path) -> str:
    """The spelling, with its commit, of what lies at a path of huggingface_hub's cache; "" for
    other paths."""
    # CACHE/models--ORG--NAME/snapshots/COMMIT
    match = re.search(
        r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(/.*)?$", path.as_posix()
    )
    if match is None:
        return ""
    return f"{PREFIX}{match[1]}/{match[2]}{match[4] or ''}@{match[3]}"


def _needed(spelling: str, wanted: _Spelling, names: Sequence[str], weights: bool) -> list[str]:
    """The files of a repository to fetch."""
    settings = [name for name in names if _SETTINGS.fullmatch(name)]
    if not weights:
        return settings
    if wanted.file:
        if wanted.file not in names:
            raise ValueError(f"{spelling} is not there; {_ggufs(names) or 'it has no GGUF file'}")
        return list(parts_of(wanted.file))
    found = [name for name in names if _WEIGHTS.fullmatch(name)]
    # Shards with an index go before one file of the same weights, as their reader has it.
    for stem in ("model", "params"):
        shards = [name for name in found if name.startswith(f"{stem}-")]
        if f"{stem}.safetensors.index.json" in names and shards:
            found = [name for name in found if name != f"{stem}.safetensors"]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not found and one_model(ggufs):
        return ggufs
    if not found:
        pickles = [name for name in names if re.search(r"\.(bin|pt|pth|ckpt)$", name)]
        why = f"it has {pickles[0]}, and pickled weights are never read" if pickles else ""
        raise ValueError(
            f"{spelling} has no safetensors; "
            f"{_ggufs(names) or why or 'take a repository that has them'}"
        )
    return [*settings, *found]


def _ggufs(names: Sequence[str]) -> str:
    # Of a file in parts the first stands for all.
    files = [name for name in names if name.endswith(".gguf") and next(parts_of(name)) == name]
    return f"add one of its GGUF files to the name: {', '.join(files)}" if files else ""


def _result(folder: Path, wanted: _Spelling, names: Sequence[str]) -> Path:
    # Of several parts the reader finds the others beside the first.
    alone = names[0] if names and names[0].endswith(".gguf") else wanted.file
    return folder / alone if alone else folder


def _cached(hub: Any, wanted: _Spelling) -> Path | None:
    """What the cache has of a spelling, None for nothing. Whether all shards are there is for the
    reader of the folder to see."""
    for name in [wanted.file] if wanted.file else _SIGNS:
        file = hub.try_to_load_from_cache(wanted.name, name, revision=wanted.revision)
        if isinstance(file, str):
            return Path(file) if wanted.file else Path(file).parent
    return None


def _unreachable(hub: Any, error: Exception) -> bool:
    """True where the hub could not be asked; an answer of its own is not one of these."""
    return not isinstance(error, ValueError) and getattr(error, "response", None) is None


def _refusal(
    hub: Any, spelling: str, wanted: _Spelling, endpoint: str, error: Exception
) -> Exception:
    """The error as one line that says what to do."""
    if isinstance(error, ValueError):
        return error
    errors, page = hub.errors, f"{endpoint}/{wanted.name}"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    # In this order: a gated model is a missing one too, for the package.
    rows: list[tuple[Any, Callable[[], str]]] = [
        (
            errors.GatedRepoError,
            lambda: (
                f"{spelling} is gated: accept its terms at {page}, then run hf auth login or set "
                "HF_TOKEN"
            ),
        ),
        (
            errors.RepositoryNotFoundError,
            lambda: (
                f"{spelling} is not on {endpoint}, or is private: look for its name there; for a "
                "private one run hf auth login or set HF_TOKEN"
            ),
        ),
        (
            errors.RevisionNotFoundError,
            lambda: f"{spelling}: there is no such revision; they are listed at {page}/commits",
        ),
        (
            errors.HfHubHTTPError,
            lambda: f"{spelling}: {endpoint} answered {reason}; try again later",
        ),
    ]
    told = next((make for kind, make in rows if isinstance(error, kind)), None)
    if told is not None and getattr(error, "response", None) is not None:
        return ValueError(told())
    return ValueError(
        f"{spelling} is not in the cache {hub.constants.HF_HUB_CACHE}, and {endpoint} cannot be "
        f"asked ({reason}): run hf download {wanted.name} where there is a network, or unset "
        "HF_HUB_OFFLINE"
    )
