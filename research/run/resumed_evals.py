"""Evaluations of one command, each kept as it ends: one that was ended goes on where it was."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import research
from research.evals.evaluation import Evaluation
from research.evals.results import FOLDER, Result, keep, read_kept
from research.run import evaluated
from research.run.opened import Opened
from research.training.fingerprint import combined

Numbers = dict[str, dict[str, Any]]  # of an evaluation by metric, as they are kept and printed


@dataclass(frozen=True)
class Evaluations:
    """What a command measures, and where it keeps it.

    folder    that of `evals/`
    settings  of each evaluation by name
    chosen    the evaluations by name
    again     whether those are measured too that were finished before
    """

    folder: Path
    settings: evaluated.Settings
    chosen: Mapping[str, Evaluation]
    again: bool = False

    def measure(self, opened: Opened, facts: Mapping[str, Any]) -> dict[str, Result]:
        """The results by name, each kept with the `facts` as soon as it is there.

        One that was finished before, of the same parameters with the same settings, data and code,
        is taken from its file, which is said in a line on standard error.
        """
        marks = self._marks(opened)
        results = {}
        for name, evaluation in self.chosen.items():
            kept = None if self.again else self._kept(name, {"fingerprint": marks[name]})
            if kept is not None:
                _say(f"{name}: finished before, taken from {self._path(name)}; --again measures it")
                results[name] = kept[0]
                continue
            [results[name]] = evaluated.evaluate({name: evaluation}, opened).values()
            told = {**facts, "settings": self.settings[name], "fingerprint": marks[name]}
            path = keep(self.folder, results[name], told)
            _say(f"{name}: {len(results[name].items):,} items in {path}")
        return results

    def compare(self, results: Mapping[str, Result], other: Opened) -> None:
        """Adds to what is kept of each result how it differs from that of another model; one that
        has it already stays."""
        marks = self._marks(other)
        for name, result in results.items():
            kept = self._kept(name, {})
            if kept is None:
                raise ValueError(f"{self._path(name)} was changed while it was compared")
            if not self.again and kept[1].get("against_fingerprint") == marks[name]:
                _say(f"{name}: compared with {other.source} before, taken from {self._path(name)}")
                continue
            [before] = evaluated.evaluate({name: self.chosen[name]}, other).values()
            numbers = kept[1]["metrics"]
            for metric, one in result.less(before).items():
                numbers[metric]["difference"] = one.to_json()
            told = ("model", "step", "erased", "settings", "fingerprint")
            facts = {fact: kept[1][fact] for fact in told if fact in kept[1]}
            facts |= {"against": other.source, "against_fingerprint": marks[name]}
            keep(self.folder, result, facts, numbers)

    def numbers(self, compared: bool) -> dict[str, Numbers]:
        """The numbers that are kept, by name; differences only if this command has `compared`."""
        shown: dict[str, Numbers] = {}
        for name in self.chosen:
            kept = json.loads(self._path(name).read_text("utf-8"))["metrics"]
            hidden = () if compared else ("difference",)
            shown[name] = {
                metric: {field: one[field] for field in one if field not in hidden}
                for metric, one in kept.items()
            }
        return shown

    def _path(self, name: str) -> Path:
        return self.folder / FOLDER / f"{name}.json"

    def _kept(self, name: str, facts: Mapping[str, Any]) -> tuple[Result, dict[str, Any]] | None:
        return read_kept(self.folder, name, self.chosen[name], facts)

    def _marks(self, opened: Opened) -> dict[str, str]:
        """By name, 64 hexadecimal digits of all that the numbers depend on."""
        shared = [
            combined(opened.params),
            combined(dict(opened.held)) if opened.held else "",
            repr(opened.model),
            *_reading(opened),
            repr((opened.window, opened.begins_texts, opened.stop_ids, opened.sentences)),
            repr((opened.experiment, opened.labels)),
            code_digest(),
            f"{jax.__version__} {jax.default_backend()}",
        ]
        return {
            name: digest(
                [*shared, json.dumps(fields, sort_keys=True, default=repr), *_files(fields)]
            )
            for name, fields in self.settings.items()
        }


def digest(parts: list[str]) -> str:
    """The sha256 of texts in their order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def code_digest() -> str:
    """The sha256 of the Python files of this package: other code may give other numbers."""
    root = Path(research.__path__[0])
    return digest(
        [f"{path.relative_to(root)} {_digest_of(path)}" for path in sorted(root.rglob("*.py"))]
    )


def _reading(opened: Opened) -> list[str]:
    tokenizer = opened.tokenizer
    return [tokenizer.fingerprint, str(tokenizer.chat_template)] if tokenizer else []


def _files(fields: Mapping[str, Any]) -> list[str]:
    """The digests of the files that settings name, which may have changed under their names."""
    named = [Path(value).expanduser() for value in fields.values() if isinstance(value, str)]
    return [_digest_of(path) for path in named if _is_file(path)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a long prompt is no path
        return False


def _digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr)
