"""What it saves to guess from the text itself (`research.serve.lookup`): the same answers that
quote their prompt, written with and without guesses in turns.

The task is an extraction: records of people in one text, those of one city as an example of what is
wanted, and the heading for those of another, which a model goes on with as they stand. How many
calls of the model the guesses save is a count, which no other work on the machine changes; the
ratio of seconds is a measurement.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from research.infer.sampling import SamplingConfig
from research.run.opened import Opened, open_model
from research.serve.engine import Engine
from research.serve.request import Request

TOKENS = 96  # most of an answer
_PAGE = 16
_NAMES = "Ada Ben Cleo Dan Eva Finn Gina Hugo Iris Jon Kira Leo Mia Nils Olga Paul".split()
_CITIES = ("Lisbon", "Oslo", "Vienna", "Dublin")
_TRADES = ("baker", "nurse", "pilot", "tailor", "teacher", "welder")


def prompts(texts: int, seed: int = 0) -> list[str]:
    """Beginnings that go on with the records of one city among those of twelve people, drawn by the
    seed."""
    rng, asked = random.Random(seed), []
    for _ in range(texts):
        cities = rng.sample(_CITIES, len(_CITIES))
        records = [
            f"name: {name}; trade: {rng.choice(_TRADES)}; city: {cities[number % len(cities)]}; "
            f"phone: {rng.randrange(200, 999)}-{rng.randrange(1000, 9999)}"
            for number, name in enumerate(rng.sample(_NAMES, 12))
        ]
        shown = "\n".join(one for one in records if cities[0] in one)
        asked.append(
            "Records of people\n\n" + "\n".join(sorted(records)) + "\n\n"
            f"Records of people in {cities[0]}\n\n{shown}\n\n"
            f"Records of people in {cities[1]}\n\nname:"
        )
    return asked


def measure(checkpoint: str, drafts: int, texts: int, rounds: int) -> dict[str, Any]:
    """What so many guesses of each text save in `texts` greedy answers, see `table`: calls of the
    model, tokens that were written, guessed and kept, whether the texts are equal, and the seconds
    of each round. ValueError for a checkpoint without a tokenizer."""
    opened = open_model(None, checkpoint)
    if opened.tokenizer is None:
        raise ValueError(f"{opened.source} has no tokenizer; choose a checkpoint with one")
    requests = _requests(opened, prompts(texts))
    longest = max(len(one.prompt) for one in requests) + TOKENS
    sizes = {"rows": 1, "length": longest, "pages": -(-longest // _PAGE), "page_size": _PAGE}
    # Without pages that are found again: every round reads its prompts.
    made = {
        n: Engine(
            opened.model, opened.params, opened.tokenizer, share=False, few=True, drafts=n, **sizes
        )
        for n in (0, drafts)
    }
    written = {n: one.generate(requests) for n, one in made.items()}  # compiles
    seconds: dict[int, list[float]] = {n: [] for n in made}
    for _ in range(rounds):
        for n, one in made.items():
            began = time.perf_counter()
            one.generate(requests)
            seconds[n].append(time.perf_counter() - began)
    # Rounds write the same, so a part of the counts is that of one.
    of_one = lambda n, name: getattr(made[n].counts, name) // (rounds + 1)
    plain, guessed = (of_one(n, "steps") for n in (0, drafts))
    reading = plain - of_one(0, "written") + texts
    return {
        "texts": texts,
        "drafts": drafts,
        "written": of_one(drafts, "written"),
        "reading": reading,
        "calls_without": plain,
        "calls_with": guessed,
        "guessed": of_one(drafts, "guessed"),
        "kept": of_one(drafts, "kept"),
        "tokens_per_call": (plain - reading) / max(1, guessed - reading),
        "equal": [a.token_ids for a in written[0]] == [b.token_ids for b in written[drafts]],
        "seconds_without": seconds[0],
        "seconds_with": seconds[drafts],
        "ratio": float(np.median(np.divide(seconds[0], seconds[drafts]))),
        "first": written[drafts][0].text,
    }


def _requests(opened: Opened, asked: Sequence[str]) -> list[Request]:
    """The beginnings as they are, without a chat template: any model goes on with them."""
    config = SamplingConfig(temperature=0.0, max_tokens=TOKENS, stop=("\n\n",))
    config = replace(config, stop_ids=tuple(opened.stop_ids))
    return [Request(opened.tokenizer.encode(one), config) for one in asked]


def table(row: dict[str, Any]) -> str:
    """The figures as lines for a person."""
    without, guessing = (min(row[f"seconds_{how}"]) for how in ("without", "with"))
    turns = len(row["seconds_with"])
    return "\n".join(
        [
            f"{row['texts']} answers, {row['written']} tokens in all; the first: {row['first']!r}",
            f"calls of the model beside {row['reading']} that read: "
            f"{row['calls_without'] - row['reading']} without guesses, "
            f"{row['calls_with'] - row['reading']} with {row['drafts']} a call: "
            f"{row['tokens_per_call']:.2f} times fewer",
            f"{row['kept']} of {row['guessed']} guesses kept; texts equal: {row['equal']}",
            f"seconds, least of {turns} turns: {without:.2f} and {guessing:.2f}; "
            f"ratio, median of the turns: {row['ratio']:.2f}",
        ]
    )
