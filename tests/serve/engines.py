"""Engines over models of two layers, and requests for them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from research.data.tokenizers import train_tokenizer
from research.files import building
from research.infer.sampling import SamplingConfig
from research.interop import native
from research.models.model import Model
from research.serve.engine import Engine
from research.serve.request import Request
from tests.families import FAMILIES, VOCAB
from tests.interop.memory import in_memory, random_params
from tests.models.test_model import parameters


class Letters:
    """A tokenizer whose tokens are letters."""

    bos_id = None
    eos_id = None
    chat_template = None

    def decode(self, ids: Sequence[int]) -> str:
        """A letter for each id."""
        return "".join(chr(33 + i) for i in ids)

    def encode(self, text: str) -> list[int]:
        """An id for each letter."""
        return [ord(letter) - 33 for letter in text]


@cache
def model(name: str = "llama3_405b") -> tuple[Model, dict]:
    """A model of the family and its parameters."""
    return Model(FAMILIES[name]), parameters(name)


def engine(name: str = "llama3_405b", **settings) -> Engine:
    """A small engine of the family, with few shapes, since each is compiled."""
    settings = {"pages": 32, "page_size": 4, "rows": 4, "chunk": 8, **settings}
    made = Engine(*model(name), Letters(), **settings)
    made.shapes = replace(made.shapes, least=settings["rows"])
    return made


def save(folder: Path) -> Path:
    """Writes a small decoder and its tokenizer into a folder, which is returned."""
    tokenizer = train_tokenizer("bpe:300", ["to be or not to be, that is the question " * 20])
    c = replace(FAMILIES["llama2_7b"], vocab_size=tokenizer.vocab_size, max_length=4096)
    with building(folder) as made:
        native.write_native(in_memory(c, random_params(c)), made)
        tokenizer.save(made)
    return folder


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def requests(count: int, longest: int, seed: int = 0) -> list[Request]:
    """Requests of mixed lengths and samplings that end within `longest` tokens."""
    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        length = int(rng.integers(1, longest - 4))
        sampling = SamplingConfig(
            temperature=float(rng.choice([0, 0.8, 1.0])),
            top_k=int(rng.choice([0, 7])),
            top_p=float(rng.choice([1, 0.8])),
            min_p=float(rng.choice([0, 0.02])),
            repetition_penalty=float(rng.choice([1, 1.3])),
            max_tokens=int(rng.integers(1, longest - length)),
            seed=number,
        )
        made.append(Request(prompt(length, number % 7), sampling))
    return made
