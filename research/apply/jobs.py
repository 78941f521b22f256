"""The table of jobs, and the loop that runs one over documents."""

import sys
from collections.abc import Sequence
from typing import Any

from research.apply.answer import Answer
from research.apply.ask import Ask
from research.apply.complete import Complete
from research.apply.documents import Document, Given, LeftOut
from research.apply.job import Job, Result
from research.apply.output import Output
from research.apply.progress import progress
from research.apply.summarize import Summarize
from research.apply.translate import Translate
from research.apply.write import Write
from research.apply.writer import Writer

# One row a job: its name on the command line and its class.
JOBS: dict[str, type[Job]] = {
    "summarize": Summarize,
    "translate": Translate,
    "complete": Complete,
    "write": Write,
    "answer": Answer,
    "ask": Ask,
}


def run_job(
    job: Job, writer: Writer, given: Sequence[Given], output: Output, batch: int
) -> dict[str, Any]:
    """Runs a job over documents and adds a line a document to the output; what has one is passed
    over. Each document that is left out gets a line on standard error, and the others are done.

    {"written", "present", "left_out": [{"source", "reason"}], ...}: lines that were added, those
    that were there, and the numbers of the job's report over the lines that were added.
    """
    left_out: list[dict[str, str]] = []
    rows: list[dict[str, Any]] = []
    waiting: list[tuple[Document, str]] = []
    present = 0
    for one in given:
        try:
            if isinstance(one, LeftOut):
                raise ValueError(one.reason)
            shown = job.input(one)
        except ValueError as error:
            _leave_out(one.source, error, left_out)
            continue
        if output.done(one.source, shown):
            present += 1
        else:
            waiting.append((one, shown))
    with progress("documents") as tell:
        for first in range(0, len(waiting), batch):
            part = waiting[first : first + batch]
            made = []
            for (document, shown), result in zip(part, _results(job, [d for d, _ in part], writer)):
                if isinstance(result, ValueError):
                    _leave_out(document.source, result, left_out)
                    continue
                made.append({"source": document.source, "input": shown, **result})
            output.add(made)
            rows += made
            tell(first + len(part), len(waiting))
    numbers = job.report(rows) if rows else {}
    return {"written": len(rows), "present": present, "left_out": left_out, **numbers}


def _results(job: Job, documents: Sequence[Document], writer: Writer) -> list[Result]:
    """The results of a batch. Where it is refused as a whole each document is tried alone, so that
    one that the model cannot read costs no other."""
    try:
        return job.run(documents, writer)
    except ValueError as error:
        if len(documents) == 1:
            return [error]
    return [result for one in documents for result in _results(job, [one], writer)]


def _leave_out(source: str, error: object, left_out: list[dict[str, str]]) -> None:
    reason = " ".join(str(error).split())
    left_out.append({"source": source, "reason": reason})
    print(f"left out {source}: {reason}", file=sys.stderr)
