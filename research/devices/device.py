"""What is known of one kind of device: the row of a table that `research.devices.table` joins."""

from dataclasses import dataclass

GB = 1e9  # bytes
GIB = 2**30
GBIT = 1e9 / 8  # bytes of a network's gigabit


@dataclass(frozen=True)
class Multiprocessors:
    """What OpenXLA's compiler wants to know of an NVIDIA card; sizes in bytes.

    `cores` are streaming multiprocessors, each with `lanes` float32 units, `threads` resident
    threads and `shared` memory; one block may use all of it but a kilobyte.
    """

    cores: int
    lanes: int
    threads: int
    shared: int
    cache: int
    clock_ghz: float


@dataclass(frozen=True)
class Slices:
    """How the chips of a TPU generation are wired; bytes/s are of a chip and in one direction.

    A chip is `devices` devices and has two links of `link` bytes/s along each axis of its torus.
    `datacenter` is its share of its host's network cards, `most` the chips of the largest slice.
    """

    devices: int
    link: float
    datacenter: float
    most: int


@dataclass(frozen=True)
class Device:
    """One `jax.Device` as its maker publishes it. A fact is None where there is no such thing.

    kind              JAX's `device_kind`, which on NVIDIA is the card's name in the driver
    memory_bandwidth  bytes/s between the device and its memory
    flops             dense FLOP/s (int8: operations/s) by type, accumulated in 32 bits, at boost
                      clock; a type that the hardware does not multiply is left out
    aliases           other names of the same device
    variants          beginnings of the names of cards without a row, up to a space or a hyphen,
                      that share the capability and the fast types but not the figures
    capability        NVIDIA: CUDA's compute capability
    watts             the power that the sheet rates it at; None where no sheet is known
    torus             TPU: axes of the torus that its slices are cut from
    target            its name in `research.fit`, which compiles for it; "" where it does not. Such
                      a row has everything below too:
    memory            bytes that programs can use
    inside, between   NVIDIA: bytes/s that a card receives from its node and from other nodes
    processors        NVIDIA: what the compiler is told
    slices            TPU: how chips are wired
    """

    kind: str
    memory_bandwidth: float
    flops: dict[str, float]
    aliases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    torus: int | None = None
    target: str = ""
    memory: int | None = None
    inside: float | None = None
    between: float | None = None
    processors: Multiprocessors | None = None
    slices: Slices | None = None
    watts: float | None = None

    @property
    def fast_types(self) -> frozenset[str]:
        """The 8-bit types that it multiplies faster than any 16-bit one."""
        wide = max(self.flops.get(name, 0.0) for name in ("bfloat16", "float16"))
        return frozenset(name for name in ("int8", "float8") if self.flops.get(name, 0.0) > wide)


def tera(**rates: float) -> dict[str, float]:
    """FLOP/s by type from figures in TFLOP/s, as sheets print them."""
    return {name: rate * 1e12 for name, rate in rates.items()}
