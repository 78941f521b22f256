"""The pages of the site and what each is made of."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from research import shipped
from research.site.helps import help_texts
from research.site.markdown import fenced, from_docstring
from research.site.modules import ROOT, Module, first_sentence, read_module
from research.usage import command_files

# Titles of the pages on what must be understood, and the modules whose docstrings they are.
CONCEPTS = {
    "The tree of parameters": ("tree", "models.spec", "weights", "weights.leaf"),
    "Shardings": ("parallel", "parallel.axes", "parallel.mesh", "ops.einsum"),
    "A run and its directory": ("run", "run_directory", "run.feed", "training.events"),
    "Losses and what they count": ("objectives.objective", "training.step"),
    "Evaluations": ("evals.evaluation", "evals.intervals"),
    "Checkpoints of other programs": ("interop", "interop.certify", "interop.load"),
    "Decoding and serving": ("models.kv", "infer.decode", "serve", "serve.engine"),
}
# Jobs, and the commands and configs that do them, in the order in which they are used.
JOBS = {
    "Look at this machine": ("doctor", "completion"),
    "Pretrain a model": ("configs/quickstart", "configs/pretrain", "fit", "train", "goodput"),
    "Fine-tune a model": ("inspect_checkpoint", "configs/finetune", "inspect_batch", "train"),
    "Train on pictures": ("configs/multimodal", "inspect_batch", "train", "embed"),
    "Learn from preferences and rewards": ("configs/posttrain", "train", "evaluate"),
    "Measure a model": ("evaluate", "compare", "classify", "embed"),
    "Ablate": ("sweep", "compare"),
    "Make a model smaller": ("compress", "configs/compress", "quantize", "merge"),
    "Give a model away": ("model_card", "convert", "inspect_checkpoint"),
    "Use a model": ("chat", "generate", "transcribe", "serve", "apply"),
    "Measure speed": ("bench",),
}


class Page(NamedTuple):
    """A page: `path` without its ending, such as "commands/train", and its Markdown."""

    path: str
    text: str


def pages() -> Iterator[Page]:
    """Every page but the table of contents. ValueError without a checkout."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        raise ValueError(f"{ROOT} has no README.md; the pages are made from a checkout of Graft")
    modules = {module.name: module for module in map(read_module, _files())}
    commands = {name: modules[_name(file)] for name, file in command_files(ROOT / "research")}
    configs = {name: read_module(file) for name, file in shipped.configs().items()}
    targets = _targets(modules, commands, configs)
    yield from _readme(readme.read_text(encoding="utf-8"))
    yield Page("jobs", _jobs(commands, configs))
    for title, names in CONCEPTS.items():
        chosen = [modules[f"research.{name}"] for name in names]
        yield Page(f"concepts/{_slug(title)}", _concept(title, chosen, targets))
    helps = help_texts(commands)
    for name, module in commands.items():
        yield Page(f"commands/{name}", _command(name, module, helps[name], targets))
    for name, module in configs.items():
        yield Page(f"configs/{name}", _config(name, module, targets))
    for package, members in _packages(modules).items():
        yield Page(f"api/{package}", _api(package, members, targets))


def _files() -> list[Path]:
    return sorted((ROOT / "research").rglob("*.py"))


def _name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def _targets(*tables: dict[str, Module]) -> Callable[[Module], Callable[[str], str | None]]:
    """For a module the function that gives the target of a name in its docstrings: a dotted name,
    a path of a file or folder, or a module beside it."""
    modules, commands, configs = tables
    known = {name: name for name in modules}
    for name in modules:
        path = name.replace(".", "/")
        known |= {f"{path}.py": name, path: name, f"{path}/": name}
        known |= {f"{path}.py".removeprefix("research/"): name}
    known |= {f"research.{name}": f"command-{name}" for name in commands}
    known |= {f"configs/{name}.py": f"config-{name}" for name in configs}
    known |= {f"graft:{name}": f"config-{name}" for name in configs}

    def _of(module: Module) -> Callable[[str], str | None]:
        folder = (
            module.name if module.file.name == "__init__.py" else module.name.rpartition(".")[0]
        )

        def _link(name: str) -> str | None:
            beside = f"{folder}.{name.removesuffix('.py')}"
            return known.get(name) or (beside if beside in modules else None)

        return _link

    return _of


def _readme(text: str) -> Iterator[Page]:
    """The README, what was measured, and the READMEs of folders: the first hour of the package
    itself, and measured tables and notes of those in it."""
    yield Page("start", _with_pages(text))
    measured = (ROOT / "research" / "measured.md").read_text(encoding="utf-8")
    yield Page("measured/index", _with_pages(measured))
    first_hour = ROOT / "research" / "README.md"
    yield Page("first_hour", first_hour.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "research").glob("*/README.md")):
        yield Page(f"measured/{file.parent.name}", file.read_text(encoding="utf-8"))
    for name in ("CONTRIBUTING", "CHANGELOG"):
        yield Page(name.lower(), _with_pages((ROOT / f"{name}.md").read_text(encoding="utf-8")))


def _with_pages(text: str) -> str:
    """Links to the README of the package, to what was measured and to the READMEs of folders, from
    the checkout's folder or from the package's, as links to their pages."""
    text = re.sub(r"\]\((?:\./)?research/README\.md\)", "](/first_hour.md)", text)
    text = re.sub(r"\]\((?:\./)?research/measured\.md\)", "](/measured/index.md)", text)
    return re.sub(r"\]\((?:\./)?(?:research/)?(\w+)/README\.md\)", r"](/measured/\1.md)", text)


def _jobs(commands: dict[str, Module], configs: dict[str, Module]) -> str:
    lines = ["# What do you want to do?", ""]
    for job, names in JOBS.items():
        lines += [f"## {job}", ""]
        for name in names:
            kind, _, config = name.partition("/")
            module = configs[config] if config else commands[kind]
            label = f"configs/{config}.py" if config else f"python -m research.{kind}"
            target = f"config-{config}" if config else f"command-{kind}"
            lines.append(f"- [`{label}`](#{target}): {first_sentence(module.text)}")
        lines.append("")
    return "\n".join(lines)


def _concept(title: str, modules: list[Module], targets: Callable) -> str:
    parts = [f"# {title}"]
    for module in modules:
        parts += [
            from_docstring(module.text, targets(module)),
            f"From [`{module.name}`](#{module.name}).",
        ]
    return "\n\n".join(parts)


def _command(name: str, module: Module, help_text: str, targets: Callable) -> str:
    flags = help_text.split("\nFlags:\n", 1)[1]
    return "\n\n".join(
        [
            f"(command-{name})=\n# research.{name}",
            from_docstring(module.text, targets(module)),
            "## Flags",
            # The text that the command prints, whose lines keep their indentation.
            f"```text\n{flags.rstrip()}\n```",
        ]
    )


def _config(name: str, module: Module, targets: Callable) -> str:
    return "\n\n".join(
        [
            f"(config-{name})=\n# configs/{name}.py",
            from_docstring(module.text, targets(module)),
            "Its fields, with their values:",
            fenced(f"python -m research.train --config=graft:{name} --help"),
        ]
    )


def _packages(modules: dict[str, Module]) -> dict[str, list[Module]]:
    """The modules of each folder, by its dotted name below `research`; "research" has the rest."""
    packages: dict[str, list[Module]] = {}
    for module in modules.values():
        parts = module.file.relative_to(ROOT / "research").parts[:-1]
        packages.setdefault(".".join(parts) or "research", []).append(module)
    return packages


def _api(package: str, members: list[Module], targets: Callable) -> str:
    parts = []
    # The package's own docstring stands first.
    for module in sorted(members, key=lambda one: (one.file.name != "__init__.py", one.name)):
        first = module.file.name == "__init__.py"
        parts.append(f"({module.name})=\n{'#' if first else '##'} {module.name}")
        parts.append(from_docstring(module.text, targets(module)))
        for entry in module.entries:
            parts.append(f"{'##' if first else '###'} `{entry.name}`")
            parts.append(fenced(entry.code, "python"))
            parts.append(from_docstring(entry.text, targets(module)))
    return "\n\n".join(parts)


def _slug(title: str) -> str:
    return "-".join(title.lower().split())
