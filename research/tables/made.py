"""Tables that are made: rows drawn from pools of values, with a seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# A kind of table: its name, what a row is, columns of texts with their values, and columns of
# numbers with the least and the greatest.
_TEXTS: dict[str, tuple[str, ...]] = {
    "city": ("Rome", "Oslo", "Lima", "Cairo", "Quito", "Delhi"),
    "region": ("north", "south", "east", "west"),
    "color": ("red", "blue", "green", "black", "white"),
    "department": ("sales", "legal", "design", "support"),
    "team": ("alpha", "beta", "gamma", "delta"),
    "status": ("open", "closed", "late"),
    "country": ("Peru", "India", "Norway", "Egypt", "Japan"),
    "brand": ("Acme", "Zeta", "Orion", "Nova"),
    "genre": ("drama", "poetry", "history", "crime"),
    "day": ("monday", "friday", "sunday"),
    "size": ("small", "medium", "large"),
    "owner": ("Ann", "Ben", "Carl", "Dora", "Eve"),
}
_NUMBERS: dict[str, tuple[int, int]] = {
    "price": (5, 900),
    "amount": (1, 500),
    "age": (18, 70),
    "salary": (900, 9000),
    "weight": (1, 90),
    "score": (0, 100),
    "pages": (40, 900),
    "distance": (1, 800),
    "stock": (0, 300),
    "speed": (20, 240),
    "visits": (1, 400),
    "rating": (1, 10),
}
NAMES = (
    *("sales", "staff", "orders", "books", "trips", "players", "products", "cars", "shops"),
    *("clients", "tickets", "flights"),
)
_ROWS = (12, 30)


@dataclass(frozen=True)
class MadeTable:
    """A table: its name, which columns have texts and which whole numbers, and its rows."""

    name: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    def values(self, column: str) -> list[Any]:
        """The different values of a column, sorted."""
        return sorted({row[column] for row in self.rows})

    def schema(self) -> str:
        """The table in a line, as `research.tables.engine.Tables.schema` has it."""
        parts = []
        for column in self.rows[0]:
            if column in self.numbers:
                parts.append(f"{column} integer")
                continue
            counts: dict[str, int] = {}
            for row in self.rows:
                counts[row[column]] = counts.get(row[column], 0) + 1
            common = sorted(counts, key=lambda value: (-counts[value], value))[:6]
            parts.append(f"{column} text ({', '.join(common)})")
        return f"table {self.name}: {', '.join(parts)}"


def made_table(rng: np.random.Generator) -> MadeTable:
    """A table with two columns of texts and two of whole numbers in any order."""
    texts = tuple(map(str, rng.choice(list(_TEXTS), 2, replace=False)))
    numbers = tuple(map(str, rng.choice(list(_NUMBERS), 2, replace=False)))
    columns = [str(one) for one in rng.permutation([*texts, *numbers])]
    count = int(rng.integers(*_ROWS))
    drawn = {column: _drawn(column, count, rng) for column in columns}
    rows = [{column: drawn[column][row] for column in columns} for row in range(count)]
    return MadeTable(str(rng.choice(NAMES)), texts, numbers, tuple(rows))


def _drawn(column: str, count: int, rng: np.random.Generator) -> list[Any]:
    if column in _TEXTS:
        return [_TEXTS[column][n] for n in rng.integers(len(_TEXTS[column]), size=count)]
    low, high = _NUMBERS[column]
    return rng.integers(low, high + 1, count).tolist()
