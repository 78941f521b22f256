"""Progress of a long prompt on a terminal: its tokens are read before the first one is written."""

import sys
from collections.abc import Callable

import jax

# Shorter prompts are read before a line about them could be: 2,048 tokens take a model of 135M
# parameters a few seconds on a laptop.
SHOWN_FROM = 2048


def reading(tokens: int) -> Callable[[int, jax.Array | None], None]:
    """A function to call after each chunk of a prompt of `tokens` tokens, with the number of tokens
    read so far and an array that the chunk computes, None where that has been waited for. It shows
    the number on standard error where that is a terminal and the prompt is long, and does nothing
    elsewhere."""
    if tokens < SHOWN_FROM or not sys.stderr.isatty() or jax.process_index():
        return lambda done, computed: None

    def _show(done: int, computed: jax.Array | None) -> None:
        # Chunks are only queued when the call returns; a number must not run ahead of them.
        jax.block_until_ready(computed)
        line = f"reading the prompt: {done:,} of {tokens:,} tokens" if done < tokens else ""
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return _show
