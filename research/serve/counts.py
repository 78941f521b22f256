"""What an engine has done."""

from dataclasses import dataclass


@dataclass
class Counts:
    """What an engine has done since its start: calls of the model, tokens that went through it,
    prompts' tokens that were found in the cache instead, tokens written, texts that were stopped
    for want of pages, texts that have ended, tokens that were guessed, and how many of these were
    what was written."""

    steps: int = 0
    computed: int = 0
    found: int = 0
    written: int = 0
    preempted: int = 0
    ended: int = 0
    guessed: int = 0
    kept: int = 0
