"""The log-probabilities of a run's reference, computed once before its first step and cached by
what decides them: the reference's parameters, its model and precision, and the windows."""

import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

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
    under the reference in nats, 0 for the first one."""

    def __init__(self, windows: Windows, logp_NT: np.ndarray):
        if len(windows) != len(logp_NT):
            raise ValueError(f"{len(logp_NT)} rows of log-probabilities, {len(windows)} windows")
        self._windows, self._logp = windows, logp_NT

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {**self._windows[index], REFERENCE: self._logp[index]}


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
        parts = [ReferencedWindows(part, self._scores(part)) for part in train.parts]
        last = ReferencedWindows(heldout, self._scores(heldout))
        line = (
            f"the reference's log-probabilities of {sum(train.sizes) + len(heldout):,} windows are "
            f"read from {self.cache / REFERENCE}; no reference is held"
        )
        return train.over(parts), Chained([last]), line

    def _scores(self, windows: Windows) -> np.ndarray:
        """Float32 [windows, length], from the cache if it is there."""
        program = self.program
        e = program.experiment
        described = [asdict(e.model), asdict(e.precision), _content(windows)]
        key = digest(_FORMAT, self.parameters, json.dumps(described, sort_keys=True))

        def build(folder: Path) -> None:
            scores = _compute(program, *self.first(), windows)
            np.save(folder / "logp.npy", scores)
            write_json(folder / "meta.json", {"crc32": zlib.crc32(scores.tobytes())})

        return built(self.cache / REFERENCE / key[:32], build, _open)


def first_print(state: TrainState) -> str:
    """Digest of the parameters of a first state, which are the reference's."""
    return combined({"base": state.held["base"], REFERENCE: state.trainable})


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


def _content(windows: Sequence[dict[str, np.ndarray]]) -> str:
    """A hash of all tokens and how they are packed."""
    sha = hashlib.sha256()
    for index in range(len(windows)):
        window = windows[index]
        for name in ("tokens", "segments", "positions"):
            sha.update(np.ascontiguousarray(window[name], "<i4").tobytes())
    return sha.hexdigest()


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
