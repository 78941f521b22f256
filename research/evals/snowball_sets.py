"""The sets of `research.evals.snowball` with as many questions of the other answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from research.evals.packaged import Record

_FLIGHT = re.compile(r"from city (\w+) to city (\w+)$", re.MULTILINE)
_ASKED = re.compile(r"from city (\w+) to city (\w+)\?")


@dataclass(frozen=True)
class Asked:
    """A question of a set whose answer is yes or no."""

    id: str
    set: str
    question: str
    answer: bool


def balanced(name: str, published: Sequence[Record], limit: int, seed: int) -> list[Asked]:
    """`limit` questions (0: as many as there are), half of them published, half their counterparts
    with the other answer. ValueError for a set that is not as it was published."""
    make = {"primes": _primes, "flights": _flights}[name]
    pairs = [make(number, record) for number, record in enumerate(published)]
    known = [pair for pair in pairs if pair is not None]
    rows = np.random.default_rng(seed).permutation(len(known))[: (limit + 1) // 2 or len(known)]
    questions = [question for row in sorted(rows.tolist()) for question in known[row]]
    return questions[: limit or len(questions)]


def is_prime(number: int) -> bool:
    """By trial division.

    >>> [n for n in range(20) if is_prime(n)]
    [2, 3, 5, 7, 11, 13, 17, 19]
    """
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def composite_near(prime: int) -> int:
    """The nearest larger number without a factor of 2, 3 or 5 that is no prime, so that neither
    the last digit nor the sum of digits gives the answer away.

    >>> composite_near(7411)
    7421
    """
    number = prime + 1
    while is_prime(number) or not all(number % d for d in (2, 3, 5)):
        number += 1
    return number


def reached(flights: Sequence[tuple[str, str]], start: str) -> dict[str, int]:
    """The cities that one can fly to from `start`, and the fewest flights that it takes."""
    flown, edge = {start: 0}, [start]
    while edge:
        here = edge.pop(0)
        for origin, target in flights:
            if origin == here and target not in flown:
                flown[target] = flown[here] + 1
                edge.append(target)
    del flown[start]
    return flown


def _primes(number: int, record: Record) -> tuple[Asked, Asked] | None:
    prime = record.get("number")
    if not isinstance(prime, int) or not is_prime(prime):
        raise ValueError(f"record {number} of the primes asks of {prime!r}, which is no prime")
    other = composite_near(prime)
    return (
        Asked(f"prime {prime} {number}", "primes", f"Is {prime} a prime number?", True),
        Asked(f"composite {other} {number}", "primes", f"Is {other} a prime number?", False),
    )


def _flights(number: int, record: Record) -> tuple[Asked, Asked] | None:
    """The question, and the same on the city that takes the most flights, at least two; None where
    each that is reached takes one."""
    text = record.get("text", "")
    flights, asked = _FLIGHT.findall(text), _ASKED.search(text)
    if not flights or asked is None:
        raise ValueError(f"record {number} of the flights has no flights and question")
    start, target = asked.groups()
    cities = reached(flights, start)
    if target in cities:
        raise ValueError(f"record {number} of the flights asks for a city that is reached")
    far = sorted((-count, city) for city, count in cities.items() if count > 1)
    if not far:
        return None
    places = asked.span(2)
    other = text[: places[0]] + far[0][1] + text[places[1] :]
    return (
        Asked(f"unreached {number}", "flights", text, False),
        Asked(f"reached {number}", "flights", other, True),
    )
