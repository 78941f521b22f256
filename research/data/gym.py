"""The sources "gym:NAME": tasks of the package reasoning-gym, which makes them from a seed and
scores answers to them.

    gym:chain_sum
    gym:chain_sum?size=500&max_terms=3    fields of the task's own config

The record of a task has its "answer" and, for the reward `reasoning_gym`, the task as "entry".
"""

import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from research.data.documents import Documents, digest

SIZE = 2000  # tasks, unless the query says otherwise


class Tasks(Documents):
    """The tasks of a data set of reasoning-gym as prompts."""

    fields = ("prompt", "record")

    def __init__(self, name: str, settings: dict[str, Any]):
        import reasoning_gym

        try:
            self._tasks = reasoning_gym.create_dataset(name, **settings)
        except (ValueError, TypeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else "it refuses these settings"
            raise ValueError(
                f"data gym:{name}: {reason}; choose a name and settings of reasoning-gym"
            ) from None
        self._name = name
        version = importlib.metadata.version("reasoning-gym")
        self.fingerprint = digest("gym", version, name, json.dumps(settings, sort_keys=True))

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: int) -> dict[str, str]:
        index = range(len(self))[index]
        entry = self._tasks[index]
        prompt, answer = entry["question"], str(entry["answer"])
        # Its metadata are of any type; what JSON lacks is a text.
        record = json.dumps({"prompt": prompt, "answer": answer, "entry": entry}, default=str)
        return {"prompt": prompt, "record": record, "path": f"{self._name}/{index}"}

    def identities(self) -> Iterator[str]:
        """The questions: one that was made twice is held out at both places or at none."""
        return (self._tasks[index]["question"] for index in range(len(self)))


def open_gym(name: str, query: str, wanted: str) -> Tasks:
    """The tasks called `name`, with the settings of the query. ValueError for another layout than
    prompts, without the package, and for what it refuses."""
    if wanted != "prompts":
        raise ValueError(
            f"data 'gym:{name}' are prompts, and the objective reads {wanted}; set "
            "config.data.source or config.objective.name"
        )
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        raise ValueError(
            f"data 'gym:{name}' need the package reasoning-gym; pip install 'graft-research[rl]'"
        ) from None
    settings: dict[str, Any] = {"size": SIZE, "seed": 0}
    for key, value in parse_qsl(query, keep_blank_values=True):
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return Tasks(name, settings)
