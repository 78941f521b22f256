"""Compiles an engine's programs before the first request comes."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from research.serve.adapters import NONE
from research.serve.engine import Engine
from research.serve.soft import blanks


def warm(engine: Engine, tokens: int) -> int:
    """Compiles the programs that texts of up to so many tokens need, with a line of progress on
    standard error; their number. What is left is compiled when it is first needed: longer texts,
    and log-probabilities of prompts."""
    size, smallest = engine.pages.page_size, min(shape.pages for shape in engine.shapes.all())
    most = max(smallest, -(-tokens // size))
    wanted = [s for s in engine.shapes.all() if s.pages <= most and not s.scored]
    jobs: list[Callable[[], Any]] = [partial(engine.compile, shape) for shape in wanted]
    jobs += [partial(engine.runner.encode, one, NONE) for one in blanks(engine.model.config)]
    jobs = jobs if tokens else []
    began = time.monotonic()
    for number, compile_one in enumerate(jobs, 1):
        compile_one()
        seconds = time.monotonic() - began
        line = f"compiled {number} of {len(jobs)} programs in {seconds:.0f} s"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
    if jobs:
        print(file=sys.stderr)
    return len(jobs)
