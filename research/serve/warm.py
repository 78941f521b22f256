"""Compiles an engine's programs before the first request comes."""

import sys
import time

from research.serve.engine import Engine


def warm(engine: Engine, tokens: int) -> int:
    """Compiles the programs that texts of up to so many tokens need, with a line of progress on
    standard error; their number. What is left is compiled when it is first needed: longer texts,
    and log-probabilities of prompts."""
    size, smallest = engine.pages.page_size, min(shape.pages for shape in engine.shapes.all())
    most = max(smallest, -(-tokens // size))
    wanted = [s for s in engine.shapes.all() if s.pages <= most and not s.scored]
    wanted = wanted if tokens else []
    began = time.monotonic()
    for number, shape in enumerate(wanted, 1):
        engine.compile(shape)
        seconds = time.monotonic() - began
        line = f"compiled {number} of {len(wanted)} programs in {seconds:.0f} s"
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
    if wanted:
        print(file=sys.stderr)
    return len(wanted)
