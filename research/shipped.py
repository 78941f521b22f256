"""The configs that come with Graft, by name: `graft:NAME` is `configs/NAME.py`, wherever it is.

    python -m research.train --config=graft:quickstart:smoke --workdir=runs/smoke

In a checkout that is the folder `configs/` beside the package. `pip install` puts the same files
below the environment's folder, `share/graft/configs`, since a package of the name `configs` would
stand in everybody's way.
"""

import difflib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

SCHEME = "graft:"
_DISTRIBUTION = "graft-research"  # setup.cfg's name of the package
_INSTALLED = "share/graft/configs/"  # setup.cfg's data_files


def configs() -> dict[str, Path]:
    """The files of the shipped configs by name, such as "quickstart" or "ablations/lora_rank"."""
    folder = Path(__file__).parent.parent / "configs"
    # A folder of that name beside an installed package could be anybody's; a checkout has both.
    if folder.is_dir() and (folder.parent / "setup.cfg").is_file():
        found = {file.relative_to(folder): file for file in folder.rglob("*.py")}
    else:
        found = dict(_installed())
    names = {path.with_suffix("").as_posix(): file for path, file in found.items()}
    return dict(sorted(names.items()))


def _installed() -> Iterator[tuple[Path, Path]]:
    """(path below the folder of configs, file) of the configs that pip has installed."""
    try:
        package = distribution(_DISTRIBUTION)
    except PackageNotFoundError:
        return
    for file in package.files or []:
        _, mark, below = file.as_posix().partition(_INSTALLED)
        if not mark or not below.endswith(".py"):
            continue
        # pip's record says where its data went, which differs between environments; with --target
        # it is wrong, and they are beside the packages.
        place = Path(str(file.locate())).resolve()
        beside = Path(str(package.locate_file(f"{_INSTALLED}{below}")))
        yield Path(below), place if place.is_file() else beside


def config_file(name: str) -> Path:
    """The file of the shipped config `name`. ValueError, with the nearest names, for another."""
    known = configs()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        raise ValueError(
            f"no config {SCHEME}{name} comes with Graft; the nearest are "
            f"{', '.join(SCHEME + other for other in near)}"
            if near
            else f"no config comes with this installation of Graft; {SCHEME}{name} needs one made "
            "by pip or a checkout"
        )
    return known[name]


def nearest_file(missing: str) -> str:
    """What a config file that is not there may have been meant to be: the file of its folder
    with the name most like it, else a shipped config as `graft:NAME`. "" where there is neither, or
    where the file itself is there."""
    path = Path(missing)
    if path.exists():
        return ""
    beside = [file.name for file in sorted(path.parent.glob("*.py"))]
    for name in difflib.get_close_matches(path.name, beside, n=1, cutoff=0.0):
        return str(path.parent / name)
    for name in difflib.get_close_matches(path.stem, configs(), n=1, cutoff=0.0):
        return f"{SCHEME}{name}"
    return ""


def with_files(argv: list[str]) -> list[str]:
    """The command line with `--config=graft:NAME[:ARG]` spelt as `--config=FILE[:ARG]`.

    ValueError for a name that is not there.
    """
    words, flag = [], False
    for word in argv:
        start = "--config=" if word.startswith("--config=") else ""
        value = word.removeprefix(start)
        if (start or flag) and value.startswith(SCHEME):
            name, colon, arg = value.removeprefix(SCHEME).partition(":")
            word = f"{start}{config_file(name)}{colon}{arg}"
        flag = word == "--config"
        words.append(word)
    return words
