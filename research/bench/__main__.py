"""Runs a benchmark: python -m research.bench train [--json]"""

import json
import sys

from absl import flags

from research import command
from research.bench import train

ROUNDS = flags.DEFINE_integer("rounds", 6, "turns of each contender", lower_bound=1)
SHAPES = flags.DEFINE_list("shapes", list(train.SHAPES), "of: " + ", ".join(train.SHAPES))
DTYPES = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "of: float32, bfloat16")
PEERS = flags.DEFINE_bool("peers", True, "also time the peers, which need the extra [parity]")
JSON = flags.DEFINE_bool("json", False, "print one JSON value instead of a table")


def main(arguments: list[str]) -> int:
    """Runs the benchmark that the arguments name."""
    if arguments != ["train"]:
        raise ValueError(f"benchmark {' '.join(arguments)!r} is unknown; there is: train")
    results = train.compare(SHAPES.value, DTYPES.value, ROUNDS.value, PEERS.value)
    print(json.dumps(results) if JSON.value else train.table(results))
    return command.DONE


if __name__ == "__main__":
    sys.argv[0] = "research.bench"
    command.run(main)
