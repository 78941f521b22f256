"""Converts the tensors of another format to our parameters and back, by a family's rules."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from research.interop.storage.checkpoint import Read, specs_by_path, stacked_axes
from research.interop.storage.layout import (
    Piece,
    Rule,
    fused,
    inverse,
    letter_sizes,
    pieces,
    rearrange,
    source_shape,
)
from research.interop.storage.parameter import Parameter
from research.interop.storage.slices import Slices, whole_reader
from research.interop.storage.tensors import Tensor, Tensors, as_dtype
from research.models.config import ModelConfig


@dataclass(frozen=True)
class Names:
    """A format's tensor names beyond those of its rules; the fields are those of
    `research.interop.storage.family.Family`."""

    prefix: str = ""
    renames: Sequence[tuple[str, str]] = ()
    unused: Sequence[tuple[str, str]] = ()
    copies: Sequence[tuple[str, str]] = ()

    def canonical(self, names: Iterable[str]) -> dict[str, str]:
        """Names as in the rules, each with its name in the file."""
        actual_names = {}
        for name in names:
            plain = name
            for pattern, replacement in self.renames:
                plain = re.sub(pattern, replacement, plain)
            actual_names[plain] = name
        # The bare model's class saves the same tensors without the prefix.
        if self.prefix and not any(name.startswith(self.prefix) for name in actual_names):
            actual_names = {self.prefix + name: actual for name, actual in actual_names.items()}
        return actual_names


Original = Callable[[Mapping[str, Parameter]], Iterator[tuple[str, Read, Read]]]


def read_parameters(
    c: ModelConfig, rules: Sequence[Rule], tensors: Tensors, names: Names
) -> tuple[dict[str, Parameter], dict[str, str], Original]:
    """(parameters by path, reason for each tensor that is not a parameter, `Checkpoint.original`).

    ValueError for a tensor that is missing or has another shape, and for one without a known use.
    """
    specs, sizes = specs_by_path(c), letter_sizes(c)
    # From here on tensors go by the rules' names; messages and `unused` by the file's.
    actual = _unrepeated(names.canonical(tensors.names), rules, names)
    # For each parameter and each index of its stacked axes: the tensor that holds this slice, and
    # which of the tensor's parts it is (a fused tensor has several).
    sources: dict[str, dict[tuple[int, ...], tuple[Piece, int]]] = {path: {} for path in specs}
    used = set()
    for piece in pieces(
        rules, {path: spec.shape[: stacked_axes(spec)] for path, spec in specs.items()}
    ):
        if piece.name not in actual:
            raise ValueError(
                f"the checkpoint has no tensor {piece.name!r}; it has {_some(tensors.names)}"
            )
        tensor, wanted = tensors.names[actual[piece.name]], source_shape(piece.pattern, sizes)
        if tensor.shape != wanted:
            raise ValueError(
                f"{piece.name} has the shape {list(tensor.shape)}, the config wants {list(wanted)}"
            )
        used.add(piece.name)
        for part, path in enumerate(piece.paths):
            sources[path][piece.index] = (piece, part)
    # One reader for all parameters, so that those of a fused tensor share the one that it keeps.
    read = whole_reader(tensors, actual, sizes)
    parameters = {}
    for path, spec in specs.items():
        stack, found = stacked_axes(spec), sources[path]
        dtype = _common({tensors.names[actual[piece.name]].dtype for piece, _ in found.values()})
        slices = Slices(found, read, as_dtype(dtype), spec, tensors, actual, sizes)
        parameters[path] = Parameter(spec.shape, dtype, stack, slices)

    # The round trip: our parameters written back by the same rules, against the tensors of the
    # file.
    def _original(others: Mapping[str, Parameter]) -> Iterator[tuple[str, Read, Read]]:
        for name, (_, make) in write_tensors(c, rules, others).items():
            yield actual[name], partial(tensors.read, actual[name]), make

    return (
        parameters,
        _account(tensors, {n: a for n, a in actual.items() if n not in used}, names, parameters),
        _original,
    )


def _unrepeated(actual: Mapping[str, str], rules: Sequence[Rule], names: Names) -> dict[str, str]:
    """The names, where a tensor that the rules ask for is missing and only its copy is there with
    that copy in its place: some T5 have the table of their encoder alone."""
    found, wanted = dict(actual), {rule.path: rule.name for rule in rules}
    for copy, path in names.copies:
        name = wanted.get(path)
        if name and name not in found and copy in found and copy not in wanted.values():
            found[name] = found.pop(copy)
    return found


def write_tensors(
    c: ModelConfig, rules: Sequence[Rule], parameters: Mapping[str, Parameter]
) -> dict[str, tuple[Tensor, Callable[[], np.ndarray]]]:
    """The tensors of the rules by name, each with a function that builds it from the parameters;
    layer by layer, unlayered ones first."""
    specs, sizes = specs_by_path(c), letter_sizes(c)
    tensor_pieces = pieces(
        rules, {path: spec.shape[: stacked_axes(spec)] for path, spec in specs.items()}
    )
    written = {}
    # In file order of layers, so that a reader of shards needs one layer's tensors at a time.
    for piece in sorted(tensor_pieces, key=lambda piece: piece.index[:1]):
        # A fused tensor has one type: its parameters were read from one.
        dtype = parameters[piece.paths[0]].dtype
        tensor = Tensor(source_shape(piece.pattern, sizes), dtype)
        written[piece.name] = (tensor, _maker(piece, parameters, sizes))
    return written


def _maker(
    piece: Piece, parameters: Mapping[str, Parameter], sizes: Mapping[str, int]
) -> Callable[[], np.ndarray]:
    def _make() -> np.ndarray:
        # Patterns read file to tree; writing is the same pattern backwards, so both directions
        # cannot drift apart.
        values = [_slice(parameters[path], piece.index) for path in piece.paths]
        return rearrange(fused(values, piece.pattern), inverse(piece.pattern), sizes)

    return _make


def _slice(parameter: Parameter, index: tuple[int, ...]) -> np.ndarray:
    """The parameter at an index that may leave out the last stacked axes (experts)."""
    rest = parameter.shape[len(index) : parameter.stack]
    if not rest:
        return parameter.read(index)
    slices = [parameter.read((*index, *more)) for more in np.ndindex(*rest)]
    return np.stack(slices).reshape(*rest, *slices[0].shape)


def _account(
    tensors: Tensors, left: Mapping[str, str], names: Names, parameters: Mapping[str, Parameter]
) -> dict[str, str]:
    """The reason why each remaining tensor is not needed; ValueError for one without a reason."""
    # Every tensor of a file must be a parameter or have a reason: a weight that is silently
    # ignored is a wrong model that still runs.
    reasons = {}
    for name, actual in left.items():
        reason = next(
            (reason for pattern, reason in names.unused if re.fullmatch(pattern, name)), None
        )
        original = next(
            (path for copy, path in names.copies if copy == name and path in parameters), None
        )
        if reason is None and original is not None:
            # A tied head in the file must repeat the table; fine-tunes exist whose head does not.
            if _digest(tensors.read(actual)) != _digest(parameters[original].read(())):
                raise ValueError(
                    f"{actual} is meant to repeat {original} and differs from it; untie them in "
                    "config.json"
                )
            reason = f"repeats {original}"
        if reason is None:
            raise ValueError(
                f"the checkpoint has the tensor {actual!r}, which the model has no place for"
            )
        reasons[actual] = reason
    return reasons


def _digest(values: np.ndarray) -> str:
    # Digests instead of both arrays: a table of a large model is gigabytes, and the two need not
    # be in memory together.
    return hashlib.sha256(np.ascontiguousarray(values).view(np.uint8)).hexdigest()


def _common(dtypes: set[str]) -> str:
    """The type of a parameter's tensors; float32, which holds all of them, if they differ."""
    for name in dtypes:
        if name not in ("float32", "float64", "bfloat16", "float16"):
            raise ValueError(f"the checkpoint has weights of type {name}; wanted floats")
    return next(iter(dtypes)) if len(dtypes) == 1 else "float32"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(map(repr, listed[:3])) + (
        f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    )
