"""The log-probabilities of a run's reference, computed once before its first step and cached by
what decides them: the reference's parameters, its model and precision, and the windows."""

import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research import tree
from research.data.documents import digest
from research.data.loader import heldout_batches
from research.data.mixture import Mixture
from research.data.packing import Chained
from research.data.windows import Windows
from research.downloads.cache import Damaged, built
from research.files import read_json, write_json
from research.models.model import Model
from research.objectives.chat import Chat
from research.objectives.next_token import batch_scores
from research.objectives.objective import REFERENCE
from research.parallel.mesh import place_batch
from research.run.program import Program
from research.training.fingerprint import combined
from research.training.state import TrainState
from research.tree import Tree
from research.weights.rules import attach

_FORMAT = "1"  # part of the key: raise it when the files change

# () -> (the trained parameters before the first step, the base that they lie on).
First = Callable[[], tuple[Tree, Tree]]


class ReferencedWindows:
    """The windows of packed answers, each with "reference", float32 [length]: log p of its tokens
    under the reference in nats, 0 for the first one. Row `rows[i]` is that of window i."""

    def __init__(self, windows: Windows, logp_NT: np.ndarray, rows: Sequence[int]):
        self._windows, self._logp, self._rows = windows, logp_NT, rows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {**self._windows[index], REFERENCE: self._logp[self._rows[index]]}


@dataclass(frozen=True)
class ReferenceScores:
    """Adds the reference's log-probabilities to windows.

    program      the run's
    parameters   digest of the reference's parameters
    first        gives them with the base; called only if something is not in the cache
    cache        the folder of the cache
    """

    program: Program
    parameters: str
    first: First
    cache: Path

    def add(self, train: Mixture, heldout: Chained) -> tuple[Mixture, Chained, str]:
        """(the same stream of windows with "reference" in each, the held-out windows with it, a
        line for the user)."""
        parts = [self._with_scores(part) for part in train.parts]
        last = self._with_scores(heldout)
        line = (
            f"the reference's log-probabilities of {sum(train.sizes) + len(heldout):,} windows are "
            f"read from {self.cache / REFERENCE}; no reference is held"
        )
        return train.over(parts), Chained([last]), line

    def _with_scores(self, windows: Windows) -> ReferencedWindows:
        """The windows with their scores, from the cache if they are there."""
        program = self.program
        e = program.experiment
        # In an order of their own: another seed has the same windows in another order.
        names = [_content(windows[index]) for index in range(len(windows))]
        order = sorted(range(len(names)), key=names.__getitem__)
        described = [asdict(e.model), asdict(e.precision), [names[index] for index in order]]
        key = digest(_FORMAT, self.parameters, json.dumps(described, sort_keys=True))

        def build(folder: Path) -> None:
            scores = _compute(program, *self.first(), windows)[order]
            np.save(folder / "logp.npy", scores)
            write_json(folder / "meta.json", {"crc32": zlib.crc32(scores.tobytes())})

        scores = built(self.cache / REFERENCE / key[:32], build, _open)
        return ReferencedWindows(windows, scores, np.argsort(order))


def first_print(state: TrainState) -> str:
    """Digest of what decides the parameters of a first state, which are the reference's. A pair of
    LoRA whose second matrix is zero adds nothing, so every seed and rank has the base's digest."""
    trained = tree.paths(state.trainable)
    silent = {
        path[: -len("/b")]
        for path, value in trained.items()
        if path.endswith("/b") and f"{path[: -len('b')]}a" in trained and not jnp.any(value)
    }
    decisive = {}
    for path, value in trained.items():
        folder, _, name = path.rpartition("/")
        if not (folder in silent and name in ("a", "b", "scale")):
            decisive[path] = value
    return combined({"base": state.held["base"], REFERENCE: decisive})


def _compute(program: Program, trainable: Tree, base: Tree, windows: Windows) -> np.ndarray:
    """Float32 [windows, length], of a program whose mesh is entered."""
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes: the reference's log-probabilities are cached by "
            "one; set config.objective.reference='held'"
        )
    # No more rows at a time than a step has.
    rows = program.batch_size // program.experiment.train.accumulate
    score = jax.jit(partial(_logp, program.model))
    scores = np.zeros((len(windows), len(windows[0]["tokens"])), np.float32)
    for number, batch in enumerate(heldout_batches(windows, Chat().example, batch=rows)):
        placed = place_batch(batch, program.mesh, program.rules, rows)
        found = np.asarray(score(trainable, base, placed))
        here = scores[number * rows : (number + 1) * rows]
        here[:, 1:] = found[: len(here)]
        _tell(min((number + 1) * rows, len(windows)), len(windows))
    return scores


def _logp(model: Model, trainable: Tree, base: Tree, batch: dict[str, jax.Array]) -> jax.Array:
    # Without a key there is no dropout, as where the reference runs beside the model.
    return batch_scores(model, attach(base, trainable), batch)[0].logp


def _content(window: Mapping[str, np.ndarray]) -> str:
    """A hash of the tokens of a window and of how they are packed."""
    parts = (window[name] for name in ("tokens", "segments", "positions"))
    return digest(*(np.ascontiguousarray(part, "<i4").tobytes() for part in parts))


def _open(folder: Path) -> np.ndarray:
    folder.stat()  # FileNotFoundError for a folder that is not there
    try:
        scores = np.load(folder / "logp.npy", mmap_mode="r")
        if zlib.crc32(scores.tobytes()) != read_json(folder / "meta.json")["crc32"]:
            raise ValueError("its checksum differs")
        return np.asarray(scores)
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"the log-probabilities in {folder} are damaged: {error}") from None


def _tell(done: int, total: int) -> None:
    # The carriage return overwrites the line until the last one.
    end = "\n" if done == total else ""
    print(f"\rreference: {done:,} of {total:,} windows", end=end, file=sys.stderr)
