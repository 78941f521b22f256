"""`samples.txt`: texts that the model generated during a run, readable by people and programs.

A sample is a heading, `# step 400, prompt "def "` (the prompt as JSON), followed by the text with
each line indented by four spaces. No text can therefore be mistaken for a heading, and every text
is read back unchanged.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from research.files import write_text

_HEADING = re.compile(r'# step (\d+), prompt (".*")')
_INDENT = "    "


class Sample(NamedTuple):
    """One continuation after `step` steps; `text` begins after the prompt."""

    step: int
    prompt: str
    text: str


def append_sample(path: Path, sample: Sample) -> None:
    """Add one sample at the end of the file, in one write."""
    # newline="" keeps the line ends of the text. A model may generate half of a surrogate pair,
    # which UTF-8 cannot encode and backslashreplace writes as an escape.
    with open(path, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(_block(sample))


def read_samples(path: Path) -> list[Sample]:
    """The samples in file order; [] if there is no file. If a crash has cut the last one short, it
    is returned short."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        # Not splitlines, which would also split at characters such as U+2028 inside a text.
        lines = file.read().split("\n")
    # Lines that are neither a heading nor indented are the blanks between samples.
    samples: list[tuple[int, str, list[str]]] = []
    for line in lines:
        heading = _HEADING.fullmatch(line)
        if heading:
            samples.append((int(heading[1]), json.loads(heading[2]), []))
        elif samples and line.startswith(_INDENT):
            samples[-1][2].append(line.removeprefix(_INDENT))
    return [Sample(step, prompt, "\n".join(text)) for step, prompt, text in samples]


def keep_samples(path: Path, last_step: int) -> None:
    """Removes the samples of steps after `last_step`, which a resumed run writes again."""
    samples = read_samples(path)
    kept = [sample for sample in samples if sample.step <= last_step]
    if len(kept) < len(samples):
        write_text(path, "".join(map(_block, kept)))


def _block(sample: Sample) -> str:
    text = "".join(f"{_INDENT}{line}\n" for line in sample.text.split("\n"))
    return f"# step {sample.step}, prompt {json.dumps(sample.prompt)}\n{text}\n"
