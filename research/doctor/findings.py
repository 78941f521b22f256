"""What is right and wrong with a machine, each with its remedy: pure functions of a `Machine`."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from research.doctor.machine import Machine
from research.downloads.requirements import outdated

GIB = 2**30
OK, NOTE, WRONG = "ok", "note", "wrong"
# NVIDIA's drivers by the CUDA that they can run: docs.nvidia.com/deploy/cuda-compatibility.
_CUDA13_DRIVER, _CUDA12_DRIVER = 580, 525
_PLUGINS = {"jax-cuda12-plugin": "[cuda12]", "jax-cuda13-plugin": "[cuda]"}
_LITTLE_DISK, _LITTLE_MEMORY = 5 * GIB, 4 * GIB


@dataclass(frozen=True)
class Finding:
    """subject  what was looked at, in a word
    state    "ok", "note" (works, but slower or not as asked) or "wrong"
    text     what was found
    remedy   what to type or set, "" where nothing is to be done
    """

    subject: str
    state: str
    text: str
    remedy: str = ""


def diagnose(machine: Machine, wanted: list[str]) -> list[Finding]:
    """All findings, in the order in which a person should mend them. `wanted`: the requirements of
    Graft's base install, such as "flax>=0.12"."""
    found = [finding for check in _CHECKS for finding in check(machine)]
    # After Python, which may be why a package is old.
    return [found[0], *_required(machine, wanted), *found[1:]]


def _python(m: Machine) -> Iterator[Finding]:
    said = ".".join(map(str, m.python))
    if m.python < (3, 11):
        yield Finding("python", WRONG, said, "install Python 3.11 or newer")
    elif m.accelerator == "cuda" and m.python < (3, 12):
        yield Finding(
            "python",
            NOTE,
            f"{said} has no JAX with the kernels of this machine's card",
            "make the environment with Python 3.12 or newer",
        )
    else:
        yield Finding("python", OK, said)


def _required(m: Machine, wanted: list[str]) -> Iterator[Finding]:
    lacking = outdated(wanted, m.version)
    if lacking:
        has = [f"{line} (here {m.version(_name(line)) or 'none'})" for line in lacking]
        command = f"python -m pip install --upgrade {' '.join(map(repr, lacking))}"
        yield Finding("packages", WRONG, f"wanted {', '.join(has)}", command)
    else:
        yield Finding("packages", OK, f"all {len(wanted)} that Graft needs")


def _name(line: str) -> str:
    return re.match(r"[\w.-]+", line)[0]


def _jax(m: Machine) -> Iterator[Finding]:
    """JAX, its library and its plugins are released together and do not mix."""
    jax, jaxlib = m.version("jax"), m.version("jaxlib")
    if not jax or not jaxlib:
        return  # the packages say so
    parts = {name: m.version(name) for name in ("jaxlib", *_PLUGINS) if m.version(name)}
    other = {name: version for name, version in parts.items() if version != jax}
    if other:
        said = ", ".join(f"{name} {version}" for name, version in other.items())
        line = " ".join(f"{name}=={jax}" for name in other)
        yield Finding("jax", WRONG, f"jax {jax} beside {said}", f"python -m pip install {line}")
    else:
        yield Finding("jax", OK, f"jax and jaxlib {jax}")


def _card(m: Machine) -> Iterator[Finding]:
    plugins = [name for name in _PLUGINS if m.version(name)]
    if len(plugins) == 2:
        keep = "13" if (m.driver or _CUDA13_DRIVER) >= _CUDA13_DRIVER else "12"
        drop = "12" if keep == "13" else "13"
        yield Finding(
            "cuda",
            WRONG,
            "two plugins claim the card, for CUDA 12 and for CUDA 13",
            f"python -m pip uninstall jax-cuda{drop}-plugin jax-cuda{drop}-pjrt",
        )
    elif m.accelerator != "cuda":
        return
    elif m.driver is not None and m.driver < _CUDA12_DRIVER:
        yield Finding(
            "cuda",
            WRONG,
            f"driver {m.driver} is too old for any JAX of today",
            f"install NVIDIA's driver {_CUDA13_DRIVER} or newer, at least {_CUDA12_DRIVER}",
        )
    elif not plugins:
        extra = "[cuda]" if (m.driver or _CUDA13_DRIVER) >= _CUDA13_DRIVER else "[cuda12]"
        yield Finding("cuda", WRONG, "a card and no plugin of JAX for it", _install(extra))
    elif plugins == ["jax-cuda13-plugin"] and (m.driver or _CUDA13_DRIVER) < _CUDA13_DRIVER:
        yield Finding(
            "cuda",
            WRONG,
            f"driver {m.driver} cannot run CUDA 13, which wants {_CUDA13_DRIVER}",
            "python -m pip uninstall jax-cuda13-plugin jax-cuda13-pjrt, then "
            + _install("[cuda12]"),
        )
    else:
        yield Finding("cuda", OK, f"driver {m.driver or 'not said'}, {plugins[0]}")


def _tpu(m: Machine) -> Iterator[Finding]:
    libtpu = m.version("libtpu")
    if m.accelerator == "tpu":
        if libtpu:
            yield Finding("tpu", OK, f"libtpu {libtpu}")
        else:
            yield Finding("tpu", WRONG, "a TPU and no libtpu", _install("[tpu]"))
    elif libtpu and not m.environment.get("JAX_PLATFORMS"):
        yield Finding(
            "tpu",
            NOTE,
            f"libtpu {libtpu} and no TPU: it compiles for absent ones",
            "export JAX_PLATFORMS=cpu for programs of your own; Graft sets it by itself",
        )


def _install(extra: str) -> str:
    return f"python -m pip install 'graft-research{extra}' (in a checkout: -e '.{extra}')"


def _environment(m: Machine) -> Iterator[Finding]:
    asked = m.environment.get("JAX_PLATFORMS", "")
    if asked == "cpu" and m.accelerator in ("tpu", "cuda"):
        yield Finding(
            "JAX_PLATFORMS",
            NOTE,
            f"cpu, so the {m.accelerator} of this machine is left alone",
            "unset JAX_PLATFORMS",
        )
    if "LD_LIBRARY_PATH" in m.environment and m.accelerator == "cuda":
        # docs.jax.dev/en/latest/installation.html: it overrides the libraries of the wheels.
        yield Finding(
            "LD_LIBRARY_PATH",
            NOTE,
            "it may hide the CUDA libraries that came with JAX",
            "unset LD_LIBRARY_PATH",
        )


def _devices(m: Machine) -> Iterator[Finding]:
    """What JAX itself says, which decides: the other findings say why."""
    if m.devices:
        count, kind, memory = m.devices["count"], m.devices["kind"], m.devices["memory"]
        size = f", {memory / GIB:.1f} GiB each" if memory else ""
        expected = {"cuda": "gpu", "rocm": "gpu"}.get(m.accelerator, m.accelerator or "cpu")
        chosen = m.environment.get("JAX_PLATFORMS") == "cpu"
        if m.devices["platform"] != expected and not chosen:
            yield Finding(
                "devices",
                WRONG,
                f"JAX finds {count} x {kind} and not the {m.accelerator}",
                "see the lines above; JAX_DEBUG_LOG_MODULES=jax._src.xla_bridge python -c "
                "'import jax; jax.devices()' says why",
            )
        else:
            yield Finding("devices", OK, f"{count} x {kind}{size}")
        return
    failure = m.failure[:300]
    for pattern, remedy in _FAILURES:
        if found := re.search(pattern, m.failure):
            failure, words = found[0], found.groupdict()
            yield Finding("devices", WRONG, failure, remedy.format(**words))
            return
    yield Finding("devices", WRONG, f"JAX fails: {failure}", "see the lines above")


# What JAX says as it fails, and what helps.
_FAILURES = (
    (
        r"Unknown flags? in XLA_FLAGS: (?P<flags>.+)",
        "take {flags} out of XLA_FLAGS: this JAX does not know it",
    ),
    (
        r".*(already in use|libtpu lockfile|lockfile).*|no answer within \d+ seconds",
        "another process holds the TPU: end it (lsof /dev/accel* /dev/vfio/*), then remove "
        "/tmp/libtpu_lockfile",
    ),
    (
        # JAX's own words where JAX_PLATFORMS names a backend of which there is no plugin.
        r"[Uu]nable to initialize backend '\w+'.*|_default_backend is not None.*",
        "unset JAX_PLATFORMS, or install what it asks for (the lines above)",
    ),
    (
        r"No module named '(?P<module>[\w.]+)'",
        "python -m pip install --force-reinstall jax jaxlib ({module} is not there)",
    ),
    (
        r".*(compiled using NumPy 1|numpy\.core\.multiarray).*",
        "python -m pip install --upgrade 'numpy>=2' jax jaxlib",
    ),
)


def _room(m: Machine) -> Iterator[Finding]:
    if m.memory:
        free, total = m.memory
        text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        remedy = "smaller models: python -m research.fit --target=here --config=... says which"
        little = free < _LITTLE_MEMORY
        yield Finding("memory", NOTE if little else OK, text, remedy if little else "")
    little = m.disk < _LITTLE_DISK
    remedy = "make room, or run where there is: checkpoints are written to the workdir"
    yield Finding(
        "disk", WRONG if little else OK, f"{m.disk / GIB:.1f} GiB free here", remedy * little
    )
    folder, problem = m.cache
    if problem:
        remedy = "export GRAFT_CACHE=FOLDER, one that can be written"
        yield Finding("cache", WRONG, f"{folder} cannot be written: {problem}", remedy)
    else:
        yield Finding("cache", OK, str(folder))


_CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _python,
    _jax,
    _card,
    _tpu,
    _environment,
    _devices,
    _room,
)
