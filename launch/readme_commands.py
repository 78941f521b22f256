"""The commands of Markdown files, and what becomes of each: run, or listed with a reason.

    python launch/readme_commands.py README.md research/measured.md      # nothing is run
    python launch/readme_commands.py README.md research/measured.md --run
    python launch/readme_commands.py research/README.md --run     # the first hour, some ten minutes

With --run each is run as it is written, in a copy of the checkout; where it is long, with the
further arguments of `SMALL`. Two run at once, in the order of the files, and one that uses what
another makes waits for it. Exit code 1 where one fails, or where one is neither run nor listed.
`launch/readme.sh` calls this in the environment that it makes.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

# What a line or a piece of code begins with to be a command, in a file of prose and pictures.
BEGINNINGS = ("python -m ", "./launch/", "pip ", "pytest ", "git ", "from research import ")
LIMIT = 240  # seconds of a command, about three times what any takes beside another
AT_ONCE = 2  # a command keeps little more than one core busy

# Commands that are not run, by a pattern of how they begin, with the reason.
LISTED = {
    r"pip (install|wheel)": "builds for, or installs into, the environment of the user",
    r"\./launch/test\.sh": "the tests, all of which .ci/run runs; here the files are looked for",
    r"\./launch/(tpu|slurm)\.sh": "wants an account of a cloud or a cluster; tests/test_launch.py",
    r"python -m research\.train .*model=llama3_8b": "wants an accelerator, and 300 GB of text",
    r"python -m research\.fit": "wants .[fit], 0.7 GB; tests/fit",
    r"python -m research\.serve": "a server, which does not end, and wants .[serve]; tests/serve",
    r"python -m research\.sweep run": "minutes of two cores; tests/sweep",
    r"python -m research\.compress": "a minute of two cores; tests/test_compress.py",
    r"python -m research\.evaluate .*(crows|calibration)": "minutes of two cores; tests/evals",
    r"python -m research\.site": "wants .[site]; tests/site",
    r"python -m research\.train .*applications/data": "wants .[apply]; tests/test_applications.py",
    r"python -m research\.transcribe": "wants a recording; tests/infer/test_transcription.py",
    r"python -m research\.bench": "wants .[parity], and minutes of a quiet machine",
}
_ONE_STEP = "--config.train.steps=1 --config.train.eval_batches=1"
_SHORT_ROWS = "--config.data.sequence_length=64 --config.data.batch_size=2"
# Decoding is compiled apart, which other commands do: the smoke run, chat and generate.
_NO_SAMPLE = "--config.train.sample_tokens=0"
_TOKENIZER = "--config.data.tokenizer=bpe:512"  # the smoke run has made it of the same texts
# Further arguments, by a pattern of the command; the last row that matches counts.
SMALL = {
    r"\./launch/local\.sh": "--config=configs/quickstart.py:smoke",
    # A config cannot be named behind its overrides. A scan compiles one layer.
    r"\./launch/local\.sh .*--config\.": (
        f"{_ONE_STEP} {_NO_SAMPLE} {_TOKENIZER} --config.execution.unroll=1"
    ),
    r"python -m research\.inspect_batch .*quickstart": _TOKENIZER,
    r"python -m research\.chat": "--max_tokens=16",
    r"python -m research\.evaluate .*--evals": "--set=boolq.limit=2 --set=piqa.limit=2",
    r"python -m research\.evaluate .*--evals=piqa": "--set=piqa.limit=2",
    r"python -m research\.train --config=graft:quickstart": "--config=graft:quickstart:smoke",
    r"python -m research\.train .*finetune": f"{_ONE_STEP} {_NO_SAMPLE} {_SHORT_ROWS}",
    r"python -m research\.train .*finetune.*accumulate=8": (
        f"{_ONE_STEP} {_NO_SAMPLE} --config.data.sequence_length=64 --config.data.batch_size=8"
    ),
    r"python -m research\.quantize": "--tokens=64 --window=64",
    r"python -m research\.quantize .*--format=all": "--tokens=32 --window=32",
    r"python -m research\.quantize .*--method": "--tokens=64 --calibration_tokens=128 --window=64",
}
# Standard input of commands that read it.
INPUT = {r"python -m research\.chat": "Hello\n"}
# Files that a reader is expected to have.
FILES = {
    "conversations.jsonl": '{"messages": [{"role": "user", "content": "What is Graft?"}, '
    '{"role": "assistant", "content": "Weights are a tree."}]}\n' * 40,
    "reviews.jsonl": "".join(
        f'{{"text": "{word} film, seen {times} times", "label": "{label}"}}\n'
        for times in range(20)
        for word, label in (("A fine", "good"), ("A dull", "bad"))
    ),
}


@dataclass(frozen=True)
class Command:
    """A command as it is written, and what is done with it: `reason` says why it is only listed,
    `small` has further arguments, `text` what it reads."""

    written: str
    reason: str = ""
    small: str = ""
    text: str = ""


def commands(markdown: str) -> list[str]:
    """The commands of a text in its order, each once: lines of indented and fenced blocks, joined
    where they end in a backslash, and code between backquotes. A comment behind one is left out."""
    found = []
    for line in _code(markdown):
        command = re.sub(r"\s+#.*$", "", line.strip().removeprefix("$ ")).strip()
        if command.startswith(BEGINNINGS):
            found.append(re.sub(r"\s*\\\n\s*", " ", command))
    return list(dict.fromkeys(found))


def _code(markdown: str) -> Iterator[str]:
    """Lines of code blocks, with their continuations, and pieces of code within lines of prose."""
    fenced, joined = False, ""
    for line in markdown.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            joined += line
            # A comment may end in a backslash too, which continues nothing.
            if line.endswith("\\") and "#" not in line:
                joined += "\n"
                continue
            yield joined
            joined = ""
        else:
            yield from re.findall(r"`([^`]+)`", line)


def decide(written: str) -> Command:
    """What becomes of a command. ValueError where no rule says it."""
    reason = next((why for pattern, why in LISTED.items() if re.match(pattern, written)), "")
    runs = ("python -m research", "./launch/local.sh", "from research import ")
    if not reason and not written.startswith(runs):
        raise ValueError(f"{written!r} is neither run nor listed; give it a row in {__file__}")
    small = [extra for pattern, extra in SMALL.items() if re.match(pattern, written)]
    text = next((words for pattern, words in INPUT.items() if re.match(pattern, written)), "")
    return Command(written, reason, "" if reason or not small else small[-1], text)


def uses(command: Command) -> set[str]:
    """What a command makes, changes or reads that others do too: runs, checkpoints, a tokenizer."""
    text = f"{command.written} {command.small}"
    names = set(re.findall(r"(?:runs|checkpoints)/[\w-]+|bpe:512", text))
    names |= set(re.findall(r"--(?:source|target|checkpoint|adapter)=([\w/-]+)(?=\s|$)", text))
    if text.startswith("./launch/local.sh"):
        names |= {"bpe:512"} if "--workdir" in text else {"bpe:512", "runs/quickstart"}
    return names


def missing_files(command: Command, root: Path) -> list[str]:
    """Paths of tests that a listed command names and that are not there."""
    words = shlex.split(command.written)
    return [word for word in words if word.startswith("tests/") and not (root / word).exists()]


def run(command: Command, folder: Path) -> tuple[int, float, str]:
    """(exit code, seconds, the end of what it printed) of a command in a folder."""
    python = Path(sys.executable)
    environment = {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "GRAFT_VENV": str(python.parent.parent),
        # Most of the time is XLA's. Its machine code may be slower here, where nothing is timed.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1",
    }
    # A line of Python, as a notebook has it.
    quoted = f"python -c {shlex.quote(command.written)}"
    line = quoted if command.written.startswith("from ") else f"{command.written} {command.small}"
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=folder,
            env=environment,
            input=command.text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT * float(os.environ.get("GRAFT_SLOWER", "1")),
        )
        code, printed = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, printed = 124, (error.stdout or b"").decode(errors="replace")
    return code, time.monotonic() - began, "\n".join(printed.strip().splitlines()[-8:])


def copy_checkout(root: Path, folder: Path) -> None:
    """The files of the checkout that git has or would add, so that runs begin anew."""
    names = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "-co", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout
    there = [name for name in names.decode().split("\0") if name and (root / name).exists()]
    packed = ["tar", "-C", str(root), "-cf", "-", "--no-recursion", "--null", "-T", "-"]
    with subprocess.Popen(packed, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
        with subprocess.Popen(["tar", "-C", str(folder), "-xf", "-"], stdin=tar.stdout):
            tar.stdin.write("\0".join(there).encode())
            tar.stdin.close()


def main(arguments: list[str]) -> int:
    """Tells, or with --run does, what becomes of every command; the exit code."""
    files = [Path(name) for name in arguments if name != "--run"]
    root, failed = Path(__file__).resolve().parent.parent, 0
    text = "\n".join(file.read_text() for file in files)
    decided = [decide(written) for written in commands(text)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "--run" in arguments:
            copy_checkout(root, folder)
            for name, text in FILES.items():
                (folder / name).write_text(text)
        for command in decided:
            if command.reason or "--run" not in arguments:
                failed += _listed(command, root)
        if "--run" in arguments:
            failed += run_all([command for command in decided if not command.reason], folder)
    listed = sum(bool(command.reason) for command in decided)
    print(f"{len(decided)} commands: {listed} listed, {len(decided) - listed} run, {failed} failed")
    return int(failed > 0)


def run_all(commands: list[Command], folder: Path) -> int:
    """Runs the commands in a folder, `AT_ONCE` at a time, and prints a line about each. One waits
    for every earlier one with which it shares what it uses. The number of those that fail."""
    left, running, failed = list(commands), dict[Future, Command](), 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while left or running:
            busy = [uses(command) for command in running.values()]
            for command in list(left):
                if len(running) < AT_ONCE and not any(uses(command) & names for names in busy):
                    left.remove(command)
                    running[pool.submit(run, command, folder)] = command
                busy.append(uses(command))  # those behind it wait for it, whether it runs or not
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                failed += _told(running.pop(done), *done.result())
    return failed


def _told(command: Command, code: int, seconds: float, end: str) -> bool:
    """Prints how a command ended; whether it failed."""
    print(f"{'ok' if code == 0 else 'FAILED':<7} {seconds:4.0f} s  {_shown(command)}", flush=True)
    if code:
        print(f"exit code {code}:\n{end}", flush=True)
    return code != 0


def _listed(command: Command, root: Path) -> bool:
    """Prints what becomes of a command that is not run; whether a file of tests that it names is
    not there."""
    gone = missing_files(command, root) if command.reason else []
    if command.reason:
        print(f"listed  {_shown(command)}\n        {command.reason}")
    else:
        print(f"run     {_shown(command)}")
    if gone:
        print(f"        FAILED: no {', '.join(gone)}")
    return bool(gone)


def _shown(command: Command) -> str:
    return f"{command.written}{'  + ' + command.small if command.small else ''}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
