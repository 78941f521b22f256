"""Progress on standard error: a bar on a terminal, else a line for each tenth."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(things: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with the number of `things` that are done, and of all."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(things, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    told = 0

    def _tell(done: int, total: int) -> None:
        nonlocal told
        if done * 10 // max(total, 1) > told:
            told = done * 10 // max(total, 1)
            print(f"{done} of {total} {things}", file=sys.stderr)

    yield _tell
