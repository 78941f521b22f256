"""Where the time of a run went: how much of it was training steps that count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# All kinds of time in the order in which they are shown, and what each is.
KINDS: Mapping[str, str] = {
    "step": "training steps that count",
    "start": "from the start of a process to its first step: imports, data, restore",
    "compiling": "the first step of a process, with its compilation",
    "data": "steps waiting for their batches",
    "evaluating": "evaluations on held-out data",
    "sampling": "samples of generated text",
    "saving": "checkpoints, as far as the run waits for them",
    "lost": "steps whose work was lost with a process and done again",
    "down": "between the last sign of a process and the start of the next",
}


@dataclass(frozen=True)
class Goodput:
    """seconds    by kind (`KINDS`); their sum is the time from the first start to the last event
    processes  how many processes have run it, one after the other
    """

    seconds: Mapping[str, float]
    processes: int

    @property
    def total(self) -> float:
        """Seconds from the start of the first process to the last event."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """The share of the whole time that was training steps that count, 0 to 1."""
        return self.seconds["step"] / self.total if self.total > 0 else 0.0


def goodput(events: Sequence[Mapping[str, Any]]) -> Goodput:
    """Adds up the events of a run (`research.training.events`).

    A process that is killed has no last event, so that the time since its last sign of life counts
    as `down`. ValueError without a `begin`.

        goodput(read_events("runs/quickstart")).share
    """
    lives = _lives(events)
    if not lives:
        raise ValueError("there is no beginning of a run among the events")
    seconds = dict.fromkeys(KINDS, 0.0)
    for life, following in zip(lives, [*lives[1:], None]):
        # The next process goes on from its own first step; later ones of this one are done again.
        kept = following[0]["step"] if following else float("inf")
        for stretch in _stretches(life):
            lost = stretch.seconds * stretch.share_after(kept)
            seconds["lost"] += lost
            seconds[stretch.kind] += stretch.seconds - lost
        if following:
            seconds["down"] += max(0.0, following[0]["started"] - life[-1]["time"])
    return Goodput(seconds, len(lives))


def _lives(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The events of each process; each list starts with its `begin`."""
    lives: list[list[Mapping[str, Any]]] = []
    for event in events:
        if event["event"] == "begin":
            lives.append([])
        if lives:
            lives[-1].append(event)
    return lives


@dataclass(frozen=True)
class _Stretch:
    """A length of time of one kind, spent while the steps after `first` until `last` were done."""

    kind: str
    seconds: float
    first: float
    last: float

    def share_after(self, kept: float) -> float:
        """The share of it that is of steps after `kept`; evaluations and the like have none."""
        if self.kind not in ("step", "data") or self.last <= kept:
            return 0.0
        # What comes after the last step on record, and before the next one, has no steps.
        return (self.last - max(kept, self.first)) / max(1, self.last - self.first)


def _stretches(life: Sequence[Mapping[str, Any]]) -> Iterator[_Stretch]:
    """The whole time of a process. What no pause explains is the time of steps."""
    begin = life[0]
    now, stepping, step = begin["started"], False, begin["step"]
    since: list[tuple[str, float]] = []  # stretches since the last step that is on record
    for event in life:
        start = event["time"] - event.get("seconds", 0.0)
        if start > now:
            since.append(("step" if stepping else "start", start - now))
        if event["event"] == "pause":
            # Clocks may be set back; no stretch is shorter than nothing.
            since.append((event["what"], max(0.0, event["time"] - max(now, start))))
            stepping = True
        now = max(now, event["time"])
        if event["event"] == "step":
            yield from _with_waits(since, event["waited"], step, event["step"])
            stepping, step, since = True, event["step"], []
    yield from _with_waits(since, 0.0, step, step + 1)


def _with_waits(
    stretches: Sequence[tuple[str, float]], waited: float, first: int, last: int
) -> Iterator[_Stretch]:
    """The stretches between two steps on record, of which `waited` seconds of steps were spent on
    data."""
    for kind, length in stretches:
        # The first batch is waited for while the first step compiles, and counts there.
        data = min(waited, length) if kind == "step" else 0.0
        waited -= data
        yield _Stretch(kind, length - data, first, last)
        yield _Stretch("data", data, first, last)
