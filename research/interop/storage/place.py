"""Parameters of a checkpoint read onto their devices: as they are stored, or quantized on the
way."""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from research.interop.storage.parameter import Codes, Parameter
from research.interop.storage.shards import Shards
from research.interop.storage.tiles import Tile
from research.weights.quantized import Quantized, quantize_array

# Two for each core, since one waits for the disk; each has a tile and its turned copy in memory.
_READERS = ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1)), "weights")


def place_all(
    parameters: Mapping[str, Parameter], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """The parameters of these paths as arrays like those `wanted`. Each slice is read once, if this
    process holds any.

    What lies in a file as it is goes tile by tile through several threads, into the array itself
    where the order of its axes is the file's: at no time is a second copy of it in memory.
    """
    devices = {device for leaf in wanted.values() for device in _devices(leaf)}
    # Where the filled memory is the array, all are filled together, in the order of the files: a
    # disk reads that fastest. Otherwise one after the other, for the host need not hold a model.
    together = all(device.platform == "cpu" for device in devices)
    groups = [list(wanted)] if together else [[path] for path in wanted]
    placed = {}
    for group in groups:
        shards = {path: Shards(wanted[path]) for path in group}
        jobs = [
            (shards[path], index, tile)
            for path in group
            for index, tile in _start(shards[path], parameters[path])
        ]
        jobs.sort(key=lambda job: job[2].source)
        # Going through the results raises what a thread raised, and drops the tiles that remain.
        for _ in _READERS.map(lambda job: _read(*job), jobs):
            pass
        placed |= {path: one.array() for path, one in shards.items()}
    return placed


def place(parameter: Parameter, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """`place_all` of one parameter."""
    return place_all({"": parameter}, {"": leaf})[""]


def _devices(leaf: jax.ShapeDtypeStruct) -> Iterable[jax.Device]:
    return leaf.sharding.addressable_devices if leaf.sharding else jax.local_devices()[:1]


def _start(shards: Shards, parameter: Parameter) -> Iterator[tuple[tuple[int, ...], Tile]]:
    """Fills in the slices that have no tiles; the tiles of the others that this process wants, each
    with its slice's index."""
    tiles_of = getattr(parameter.read, "tiles", lambda index: None)
    for index in parameter.indices():
        if not shards.wants(index):
            continue
        tiles = tiles_of(index)
        if tiles is None:
            shards.put(index, parameter.read(index))
        else:
            yield from ((index, tile) for tile in tiles if shards.wants(index, tile.at))


def _read(shards: Shards, index: tuple[int, ...], tile: Tile) -> None:
    memory = shards.memory(index, tile.at) if tile.in_order else None
    if memory is not None and memory.size == tile.nbytes:
        tile.read(memory)
    else:
        shards.put(index, tile.read(np.empty(tile.nbytes, np.uint8)), tile.at)


def place_quantized(
    parameter: Parameter, leaf: Quantized, inputs: int, codes: Codes | None = None
) -> Quantized:
    """The parameter quantized in the format of `leaf`, a `Quantized` of ShapeDtypeStructs, on their
    shardings. `inputs` is the spec's.

    One slice at a time is dense; none if `codes` already has it in this form. ValueError for groups
    that do not divide the inputs.
    """
    # Codes, scales and zero points of a weight have shardings of their own.
    parts, structure = jax.tree.flatten(leaf)
    shards = [Shards(part) for part in parts]
    for index in parameter.indices():
        # Another process may hold this slice: then it is neither read nor quantized here.
        if any(one.wants(index) for one in shards):
            slice_leaf = _stored(codes, index, leaf, parameter.stack)
            if slice_leaf is None:
                w = jnp.asarray(parameter.read(index).astype(np.float32))
                slice_leaf = quantize_array(w, leaf.format, inputs=inputs, group=leaf.group)
            for one, values in zip(shards, jax.tree.leaves(slice_leaf), strict=True):
                one.put(index, np.asarray(values))
    return jax.tree.unflatten(structure, [one.array() for one in shards])


def _stored(
    codes: Codes | None, index: tuple[int, ...], leaf: Quantized, stack: int
) -> Quantized | None:
    """The stored slice if its form is that of `leaf`, else None."""
    # Stored codes are taken over as they are: quantizing what they stand for again could round to
    # other codes.
    if codes is None or codes.forms[index] is None:
        return None
    # A file's groups may be of any size, and a run may want another format.
    stored = codes.read(index)
    # The structure includes format and sizes; shapes tell the group.
    same = jax.tree.structure(stored) == jax.tree.structure(leaf)
    shapes = [part.shape for part in jax.tree.leaves(stored)] == [
        part.shape[stack:] for part in jax.tree.leaves(leaf)
    ]
    return stored if same and shapes else None
