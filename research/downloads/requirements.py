"""What setup.cfg wants and this Python lacks: for notebooks, whose machines come with packages of
other versions. It needs nothing but the standard library."""

import re
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path


def install(root: str | Path, extra: str = "") -> str:
    """Installs the checkout in folder `root` with an extra such as "[cuda]", where something it
    wants is missing or too old; a line that says what was done.

    The line asks for a restart where a package that this process has imported was replaced: Python
    goes on with the old one. RuntimeError where pip fails.

        print(install(".", nodes.extra()))
    """
    wanted = requirements(Path(root) / "setup.cfg", extra)
    # Asked first: where nothing is missing no pip runs.
    lacking = outdated(wanted)
    if not lacking:
        return "all packages are there"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", f"{root}{extra}"]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"pip failed; wanted were {', '.join(lacking)}")
    replaced = imported([_name(line) for line in lacking])
    done = f"installed {', '.join(lacking)}"
    if not replaced:
        return done
    return (
        f"{done}; {', '.join(replaced)} was imported before: RESTART the session "
        "(Runtime > Restart session), then run all cells"
    )


def requirements(setup_cfg: Path, extra: str = "") -> list[str]:
    """The lines of install_requires, and of an extra: ["jax>=0.10.1", ..., "jax[tpu]>=0.10.1"]."""
    parser = ConfigParser()
    parser.read_string(setup_cfg.read_text())
    lines = parser["options"]["install_requires"].split("\n")
    if extra:
        lines += parser["options.extras_require"][extra.strip("[]")].split("\n")
    return [line.strip() for line in lines if line.strip()]


def outdated(wanted: list[str], version_of: Callable[[str], str | None] | None = None) -> list[str]:
    """The requirements that are not met, of forms such as "flax>=0.12" and "jax[cuda13]>=0.10.1".

    An extra of a package is met if a package is installed whose name has both ("jax[cuda13]":
    jax-cuda13-plugin, or libtpu for "jax[tpu]"). `version_of` gives the version of an installed
    package, None of any other.

    >>> outdated(["flax>=0.12", "grain>=0.2"], {"flax": "0.11.2", "grain": "0.2.18"}.get)
    ['flax>=0.12']
    """
    version_of = version_of or _version
    lacking = []
    for line in wanted:
        package, _, least = line.partition(">=")
        at_least = [(_name(line), least)]
        # Extras are not recorded with an installed package, so its plugin stands for it.
        if extra := re.search(r"\[(\w+)\]", package):
            # The plugins are released with JAX, libtpu on its own.
            plugin = "libtpu" if extra[1] == "tpu" else f"{_name(line)}-{extra[1]}-plugin"
            at_least.append((plugin, "0" if extra[1] == "tpu" else least))
        versions = [(version_of(name), number) for name, number in at_least]
        if any(there is None or _numbers(there) < _numbers(least) for there, least in versions):
            lacking.append(line)
    return lacking


def imported(packages: list[str]) -> list[str]:
    """Those of these packages that this process has imported a module of."""
    # A module's name is not its package's: `yaml` comes from PyYAML.
    modules = packages_distributions()
    loaded = {
        distribution.lower().replace("_", "-")
        for module in {name.partition(".")[0] for name in sys.modules}
        for distribution in modules.get(module, ())
    }
    return sorted({name for name in packages if name.lower().replace("_", "-") in loaded})


def _name(line: str) -> str:
    """The package of a requirement."""
    return re.match(r"[\w.-]+", line)[0]


def _numbers(text: str) -> tuple[int, ...]:
    """(0, 11, 2) of "0.11.2"; zeros at the end and a suffix such as rc1 or .dev3 count as
    nothing."""
    numbers = re.match(r"\d+(\.\d+)*|", text)[0]
    return tuple(int(part) for part in re.sub(r"(\.0+)+$", "", numbers).split(".") if part)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
