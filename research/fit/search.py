"""The adviser: settings that make the most of a target.

Every combination of mesh, batch, remat policy, optimizer and, where a base is frozen, its format is
estimated in closed form. Those that another beats in both speed and memory fall out, and the
fastest few of the rest are compiled. Where the settings as given do not fit, it also looks for the
smallest change that does, one setting at a time.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from research import command
from research.experiment.config import Experiment
from research.fit.answer import DOES_NOT_FIT, answer
from research.fit.estimate import MARGIN, Estimate, estimate
from research.fit.lightest import POLICIES
from research.fit.report import GIB, Fit
from research.fit.table import verdict
from research.fit.targets import Target
from research.fit.weigh import Weights, weigh
from research.parallel.mesh import mesh_shape
from research.run.override import change, flags, set_batch

COMPILES = 6  # of the most promising; a large step takes minutes each
BATCHES = (0.25, 0.5, 1, 2, 4, 8)  # times the experiment's own
LONG = 32_768  # tokens from which a context may be split over devices
Settings = dict[str, Any]


def search(
    experiment: Experiment,
    target: Target,
    *,
    print_json: bool,
    capacity_bytes: int | None,
    **terms: Any,
) -> int:
    """Prints the Pareto front of what was compiled, the fastest first, with the flags of each.

    Returns the exit code, 3 where nothing fits. `terms` are passed on to `answer`.

    ValueError for a target without a known capacity, and for another step than training.
    """
    capacity = target.capacity_bytes if capacity_bytes is None else capacity_bytes
    if capacity is None or terms.get("step") == "decode":
        raise ValueError(
            "--search wants --step=train and a target with a capacity; "
            "for the CPU give --capacity_gib"
        )

    def _ask(settings: Settings) -> Fit:
        fit = answer(change(experiment, **settings), target.name, capacity_bytes=capacity, **terms)
        print(f"{flags(settings) or 'as it is'}: {verdict(fit)}", file=sys.stderr)
        return fit

    # The settings as given are always compiled: people want to see how far they are from the best.
    compiled = [({}, _ask({}))]
    smallest = None
    if not compiled[0][1].fits:
        smallest = smallest_change(experiment, target, capacity, _ask)
        compiled += [smallest] if smallest else []
    # The front is sorted by estimated speed, and compiles are what takes time.
    for settings in _promising(experiment, target, capacity)[:COMPILES]:
        if settings not in [tried for tried, _ in compiled]:
            compiled.append((settings, _ask(settings)))
    best = front([(settings, fit) for settings, fit in compiled if fit.fits], _measured)
    if print_json:
        rows = [{"flags": flags(settings), **fit.to_json()} for settings, fit in best]
        value = {
            "front": rows,
            "fits_as_given": compiled[0][1].fits,
            "smallest_change": flags(smallest[0]) if smallest else None,
        }
        print(json.dumps(value))
    else:
        print(_table(compiled[0][1], smallest, best))
    return command.DONE if best else DOES_NOT_FIT


def estimates(experiment: Experiment, target: Target) -> Iterator[tuple[Settings, Estimate]]:
    """Every combination of settings that the experiment allows, with its estimate."""
    # Parameters depend on few of the settings, and weighing them takes longest.
    weights: dict[tuple, Weights] = {}
    for costly in itertools.product(
        _meshes(experiment, target), _optimizers(experiment), _formats(experiment)
    ):
        fixed = {name: value for settings in costly for name, value in settings.items()}
        for cheap in itertools.product(
            _batches(experiment), ({"execution__remat": remat} for remat in POLICIES)
        ):
            settings = _changed(experiment, {**fixed, **cheap[0], **cheap[1]})
            try:
                changed = change(experiment, **settings)
                key = tuple(map(str, costly))
                weights[key] = weights.get(key) or weigh(changed, target)
                yield settings, estimate(changed, target, weights[key])
            except ValueError:  # a batch that is no multiple, heads that do not split
                continue


def _promising(experiment: Experiment, target: Target, capacity: int) -> list[Settings]:
    """Settings that no other beats by estimate and that may fit, the fastest first."""
    possible = [
        (settings, guess)
        for settings, guess in estimates(experiment, target)
        if guess.total <= MARGIN * capacity
    ]
    return [settings for settings, _ in front(possible, _estimated)]


def smallest_change(
    experiment: Experiment, target: Target, capacity: int, ask: Callable[[Settings], Fit]
) -> tuple[Settings, Fit] | None:
    """The first of `changes` that the compiler says fits, of those that the estimate does not rule
    out."""
    for settings, guess in changes(experiment, target):
        if guess.total <= MARGIN * capacity:
            fit = ask(settings)
            if fit.fits:
                return settings, fit
    return None


def changes(experiment: Experiment, target: Target) -> Iterator[tuple[Settings, Estimate]]:
    """Single settings with their estimates, those that change the training least first.

    In order: keep less of the layers, split the batch into micro-batches, another mesh, an 8-bit
    optimizer, a frozen base in fewer bits, a smaller batch, shorter texts.
    """
    e = experiment
    # "auto" that nobody has chosen for is the first of them.
    given = POLICIES.index(e.execution.remat) if e.execution.remat in POLICIES else 0
    options: list[Settings] = [{"execution__remat": remat} for remat in POLICIES[given + 1 :]]
    # Micro-batches give the same loss, only slower, so they come before what changes a result.
    options += [{"train__accumulate": e.train.accumulate * times} for times in (2, 4, 8, 16)]
    options += [*_meshes(e, target), *_optimizers(e), *_formats(e)]
    # A batch is given for all devices or for each, and is changed in the field that is set.
    rows = e.data.batch_size or e.data.batch_size_per_device
    options += [set_batch(e, rows // times) for times in (2, 4, 8) if rows % times == 0]
    options += [{"data__sequence_length": e.data.sequence_length // times} for times in (2, 4, 8)]
    for settings in options:
        if settings := _changed(e, settings):
            try:
                yield settings, estimate(change(e, **settings), target)
            except ValueError:
                continue


def front(
    rows: list[tuple[Settings, Any]], measure: Callable[[Any], tuple[float, float]]
) -> list[tuple[Settings, Any]]:
    """The Pareto front: rows that no other beats in both speed and memory, the fastest first.

    `measure` gives (speed, memory) of a row. Of equal rows the one with fewer settings stays.
    """
    best, least = [], float("inf")
    for settings, row in sorted(
        rows, key=lambda one: (-measure(one[1])[0], measure(one[1])[1], len(one[0]))
    ):
        # Rows come fastest first, so one that needs less memory than all before it is beaten by
        # none.
        if measure(row)[1] < least:
            best.append((settings, row))
            least = measure(row)[1]
    return best


def _estimated(guess: Estimate) -> tuple[float, float]:
    # A closed form cannot tell speeds apart that agree in two digits.
    return float(f"{guess.tokens_per_second or 0:.2g}"), guess.total


def _measured(fit: Fit) -> tuple[float, float]:
    return fit.tokens_per_second or 0.0, fit.total


def _meshes(e: Experiment, target: Target) -> Iterator[Settings]:
    """Meshes of the target's devices. Within one split of the model, those that leave slices or
    nodes to data parallelism follow the one that shards parameters over all."""
    c, n, halves = e.model, target.count, (1, 2, 4, 8)
    contexts = halves if e.data.sequence_length >= LONG else (1,)
    for tensor, expert, context in itertools.product(halves, _divisors(c.experts), contexts):
        # Heads and hidden units that do not divide would stay whole on every device.
        if n % (tensor * expert * context) or c.heads % tensor or c.d_ff % tensor:
            continue
        split = {"expert": expert, "context": context, "tensor": tensor}
        rest = n // (tensor * expert * context)
        # Data parallelism over slices sends a gradient a step between them; fsdp would send
        # weights.
        for data in sorted({1, target.slices}):
            if rest % data == 0:
                sizes = {"data": data, "fsdp": rest // data, **split}
                mesh = ",".join(f"{name}:{size}" for name, size in sizes.items() if size > 1)
                # The experiment's own spelling, so that it does not count as a change.
                yield {"mesh": e.mesh if mesh_shape(mesh, n) == mesh_shape(e.mesh, n) else mesh}


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0] or [1]


def _batches(e: Experiment) -> Iterator[Settings]:
    rows = e.data.batch_size or e.data.batch_size_per_device
    for times in BATCHES:
        if rows * times >= 1 and rows * times == int(rows * times):
            yield set_batch(e, int(rows * times))


def _optimizers(e: Experiment) -> Iterator[Settings]:
    for name in dict.fromkeys(
        (e.optimizer.name, *(("adamw8bit",) if e.optimizer.name == "adamw" else ()))
    ):
        yield {"optimizer__name": name}


def _formats(e: Experiment) -> Iterator[Settings]:
    """Formats of the frozen base: the experiment's, and ones of fewer bits."""
    # Other starts of the adapters, such as PiSSA, are made for the base in one given form.
    frozen = e.tune.method == "lora" and e.lora.start == "default"
    # A dict keeps the order and drops a format that is there twice.
    for name in dict.fromkeys((e.quantize.format, *(("int8", "nf4") if frozen else ()))):
        yield {"quantize__format": name}


def _changed(e: Experiment, settings: Settings) -> Settings:
    """The settings without those that the experiment has already."""

    def _current(path: str) -> Any:
        # A double underscore stands for the dot of a config's path: a keyword cannot have one.
        section, _, name = path.partition("__")
        return getattr(getattr(e, section), name) if name else getattr(e, section)

    return {path: value for path, value in settings.items() if _current(path) != value}


def _table(
    given: Fit, smallest: tuple[Settings, Fit] | None, found: list[tuple[Settings, Fit]]
) -> str:
    lines = [f"{given.target}: as it is it {verdict(given)}"]
    if smallest:
        lines.append(f"smallest change that fits: {flags(smallest[0])}  ({verdict(smallest[1])})")
    if not found:
        lines.append(
            "nothing that was tried fits; "
            "take more devices, a smaller model or fewer tokens a device"
        )
        return "\n".join(lines)
    lines.append(f"{'tokens/s at most':>18}{'GiB':>9}{'MFU':>7}{'bound by':>10}  flags")
    for settings, fit in found:
        speed, mfu = f"{fit.tokens_per_second or 0:,.0f}", f"{fit.mfu or 0:.0%}"
        row = f"{speed:>18}{fit.total / GIB:>9.2f}{mfu:>7}{fit.roofline.bound or '-':>10}"
        lines.append(f"{row}  {flags(settings) or 'as it is'}")
    return "\n".join(lines)
