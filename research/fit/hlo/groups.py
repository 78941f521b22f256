"""Which devices take part in a collective together."""

import math
import re

Groups = tuple[tuple[int, ...], ...]


def parse_groups(attributes: str, devices: int) -> Groups:
    """Devices that take part together, from any of the forms that HLO prints; without one, all of
    them.

    `{{0,1},{2,3}}`; `[2,2]<=[2,2]T(1,0)`, rows of 0..3 after reshape and transpose;
    `mesh['a'=2,'b'=2] {'b'}`, a mesh in which `'a':(p)s` is the axis of size s behind p of the axis
    a, and which may list `device_ids=(...)`; and pairs of a permute, of which those from a device
    to itself are left out. Between slices a target `{1,2}x{0:3}` is that of devices 0 to 3 of two
    slices, of `devices` each, of which those of the same place take part together.
    """
    # The forms are tried from the most specific attribute to the general one, since an instruction
    # may print several.
    if match := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", match[1])]
        return tuple(pair for pair in pairs if pair[0] != pair[1])
    if match := re.search(r'_xla_megascale_target="\{([\d,:]+)\}x\{([\d,:]+)\}"', attributes):
        slices, members = _ranges(match[1]), _ranges(match[2])
        return tuple(
            tuple(index * devices + member for index in range(len(slices))) for member in members
        )
    _, _, text = attributes.partition("replica_groups=")
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if match := re.match(r"\[[\d,]+\]<=\[[\d,]+\](T\([\d,]+\))?", text):
        return _chunks(*_iota(match[0]))
    if match := re.match(r"\{(\{[\d,]*\},?)+\}", text):
        return tuple(tuple(_numbers(group)) for group in re.findall(r"\{([\d,]*)\}", match[0]))
    return (tuple(range(devices)),)


def _ranges(text: str) -> list[int]:
    """0, 1, 2 and 5 of "0:2,5"."""
    ranges = [_numbers(part) for part in text.split(",")]
    return [number for part in ranges for number in range(part[0], part[-1] + 1)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _iota(text: str) -> tuple[list[int], list[int]]:
    """Devices in order and the dimensions they fill, of "[2,4]<=[4,2]T(1,0)"."""
    dims, _, rest = text.partition("<=")
    shape, _, order = rest.partition("T")
    # An iota 0..n-1 of shape `sizes`, transposed: the compact print of regular groups.
    sizes = _numbers(shape)
    return _transpose(
        list(range(math.prod(sizes))), sizes, _numbers(order) or list(range(len(sizes)))
    ), _numbers(dims)


def _transpose(values: list[int], sizes: list[int], order: list[int]) -> list[int]:
    """`values` of an array of these sizes, row by row after its dimensions are put in this
    order."""
    # Row-major strides of the array before its dimensions are permuted.
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    places = [0]
    for axis in order:
        places = [place + index * strides[axis] for place in places for index in range(sizes[axis])]
    return [values[place] for place in places]


def _chunks(devices: list[int], dims: list[int]) -> Groups:
    """Rows of the last dimension."""
    return tuple(
        tuple(devices[start : start + dims[-1]]) for start in range(0, len(devices), dims[-1])
    )


def _mesh_groups(text: str) -> Groups:
    """The groups of `mesh['a'=2,'b'=4] {'b'}`, see `parse_groups`."""
    match = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
    if match is None:
        raise ValueError(
            f"replica_groups={text[:60]!r} is no mesh that is known; "
            "wanted mesh['a'=2,'b'=4] {'a'}"
        )
    axes = [part.replace("'", "").split("=") for part in match[1].split(",")]
    devices = _mesh_devices(match[2] or "")
    named = match[3].replace("'", "").split(",")
    parts = {name: (1, int(size)) for name, size in axes if name in named}
    for name, before, size in re.findall(r"'?(\w+)'?:\((\d+)\)(\d+)", match[3]):
        parts[name] = int(before), int(size)
    # Each axis as three: what is before the part of it that groups, that part, and what is behind.
    sizes, grouped = [], []
    for name, size in axes:
        before, part = parts.get(name, (int(size), 1))
        grouped += [False, name in parts, False]
        sizes += [before, part, int(size) // (before * part)]
    # Sorting is stable: the grouped dimensions move last and keep their order.
    order = sorted(range(len(grouped)), key=lambda axis: grouped[axis])
    count = math.prod(size for size, inside in zip(sizes, grouped) if inside)
    return _chunks(_transpose(devices or list(range(math.prod(sizes))), sizes, order), [count])


def _mesh_devices(ids: str) -> list[int]:
    """Devices in order: a list of them, "[2,4]<=[4,2]T(1,0)", or "[4,2]T(1,0)" where the mesh has
    the sizes; [] where none are printed."""
    if "<=" in ids:
        return _iota(ids)[0]
    # The shape in front is missing in this form; only the order of the devices is used.
    if "T(" in ids:
        return _iota(f"<={ids}")[0]
    return _numbers(ids.rpartition("]")[2])
