"""A model that is opened without a direction of its token table, such as that of gender."""

from dataclasses import replace
from pathlib import Path

import jax

from research.data.gendered import DEFINING
from research.evals.records import read_records, text_of
from research.run.opened import Opened
from research.weights.directions import (
    main_directions,
    pair_differences,
    random_directions,
    without_directions,
)

SPELLINGS = 'gender, random:SEED, or a file of "first" and "second"; behind it @DIRECTIONS'


def erase(opened: Opened, spelling: str) -> Opened:
    """The model without directions of its token table, in which words are read, and of a head that
    is the same table, written.

    `spelling` is "gender", "random:SEED" for directions by lot, which are the null, or a file of
    pairs of words under "first" and "second"; "@2" behind it takes two directions instead of one.
    ValueError for another spelling, and for a model without a tokenizer or whose table is no plain
    array.
    """
    name, _, given = spelling.partition("@")
    if given and not given.isdigit():
        raise ValueError(f"--erase={spelling}: @{given} is no number; wanted {SPELLINGS}")
    count = int(given or 1)
    table_VD = opened.params["embed"]["table"]
    if not isinstance(table_VD, jax.Array):
        raise ValueError(
            f"--erase={spelling} wants a token table of plain numbers, and {opened.source} has one "
            f"of {type(table_VD).__name__}; take the unquantized checkpoint"
        )
    kind, _, seed = name.partition(":")
    if kind == "random":
        if not seed.isdigit():
            raise ValueError(f"--erase={spelling} has no seed; wanted {SPELLINGS}")
        directions_KD = random_directions(int(seed), count, table_VD.shape[-1])
    else:
        pairs = [(_ids(opened, one), _ids(opened, other)) for one, other in _words(name)]
        directions_KD = main_directions(pair_differences(table_VD, pairs), count)
    embed = {**opened.params["embed"], "table": without_directions(table_VD, directions_KD)}
    return replace(opened, params={**opened.params, "embed": embed})


def _words(name: str) -> list[tuple[str, str]]:
    if name == "gender":
        return list(DEFINING)
    if not Path(name).expanduser().is_file():
        raise ValueError(f"--erase={name} is no file and no name; wanted {SPELLINGS}")
    found = []
    for id, record in read_records(name):
        where = f"record {id} of {name}"
        found.append((text_of(record, ("first",), where), text_of(record, ("second",), where)))
    return found


def _ids(opened: Opened, word: str) -> list[int]:
    if opened.tokenizer is None:
        raise ValueError(
            f"{opened.source} has no tokenizer; put its tokenizer.json into the folder"
        )
    # As within a sentence, where most tokenizers give a word the space before it.
    return opened.tokenizer.encode(f" {word}")
