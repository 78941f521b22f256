"""What is published of NVIDIA cards: figures, networks, and the description that OpenXLA's compiler
wants of them."""

from dataclasses import dataclass

from research.devices.table import memory_bandwidth

GB = 1e9
GBIT = 1e9 / 8  # bytes/s
NODE = 8  # cards of one machine, as in HGX and DGX boards and the largest machines of the clouds


@dataclass(frozen=True)
class Card:
    """A card; sizes in bytes, bytes/s in one direction.

    `kind` is its name in the driver, which JAX gives as `device_kind`. `memory` is the total that
    the driver shows, less than is sold. `cores` are streaming multiprocessors, of `lanes` float32
    units, `threads` resident threads and `shared` memory, of which one block may have all but a
    kilobyte. `inside` is what it receives from its node, `between` from others.
    """

    kind: str
    capability: tuple[int, int]
    memory: int
    cores: int
    lanes: int
    threads: int
    shared: int
    cache: int
    clock_ghz: float
    inside: float
    between: float


_KIB, _MIB = 2**10, 2**20
_SHARED_BY_A_NODE = 100 * GBIT / NODE
# A100, H100, H200, B200: xla/backends/gpu/target_config/specs of openxla/xla, whose figures are the
# driver's, but for the memory of H200 (PyTorch shows 139.81 GiB) and A100 40 GB (deviceQuery). T4:
# Turing architecture whitepaper, table 4 and T4 datasheet; L4: datasheet and Ada architecture
# whitepaper; RTX 4090 and 5090: appendices of the Ada and the RTX Blackwell architecture
# whitepapers. Their memory: deviceQuery's totals, with error correction where a card has it; of the
# RTX 4090 PyTorch's. Threads, registers and shared memory by compute capability: CUDA C++
# Programming Guide. Inside a node: NVLink's total of both directions is 600, 900, 900 and 1800 GB/s
# on the datasheets of A100, H100, H200 and B200; the others have 16 PCI Express lanes of generation
# 3, 4, 4 and 5. Between nodes: an adapter for each card of 200 Gbit/s in DGX A100 and 400 in DGX
# H100, H200 and B200. Nobody builds pods of the rest: one card of 100 Gbit/s a node is assumed, as
# the largest L4 machines of the clouds have, shared by eight.
CARDS = {
    "t4": Card(
        "Tesla T4",
        (7, 5),
        15655829504,
        40,
        64,
        1024,
        64 * _KIB,
        4 * _MIB,
        1.59,
        16 * GB,
        _SHARED_BY_A_NODE,
    ),
    "a100-40": Card(
        "NVIDIA A100-SXM4-40GB",
        (8, 0),
        42298834944,
        108,
        64,
        2048,
        164 * _KIB,
        40 * _MIB,
        1.41,
        300 * GB,
        200 * GBIT,
    ),
    "a100-80": Card(
        "NVIDIA A100-SXM4-80GB",
        (8, 0),
        85100068864,
        108,
        64,
        2048,
        164 * _KIB,
        40 * _MIB,
        1.41,
        300 * GB,
        200 * GBIT,
    ),
    "l4": Card(
        "NVIDIA L4",
        (8, 9),
        23583784960,
        58,
        128,
        1536,
        100 * _KIB,
        48 * _MIB,
        2.04,
        32 * GB,
        _SHARED_BY_A_NODE,
    ),
    "rtx4090": Card(
        "NVIDIA GeForce RTX 4090",
        (8, 9),
        int(23.65 * 2**30),
        128,
        128,
        1536,
        100 * _KIB,
        72 * _MIB,
        2.52,
        32 * GB,
        _SHARED_BY_A_NODE,
    ),
    "h100": Card(
        "NVIDIA H100 80GB HBM3",
        (9, 0),
        84942979072,
        132,
        128,
        2048,
        228 * _KIB,
        50 * _MIB,
        1.98,
        450 * GB,
        400 * GBIT,
    ),
    "h200": Card(
        "NVIDIA H200",
        (9, 0),
        int(139.81 * 2**30),
        132,
        128,
        2048,
        228 * _KIB,
        50 * _MIB,
        1.98,
        450 * GB,
        400 * GBIT,
    ),
    "b200": Card(
        "NVIDIA B200",
        (10, 0),
        191514411008,
        148,
        128,
        2048,
        228 * _KIB,
        132644864,
        1.965,
        900 * GB,
        400 * GBIT,
    ),
    "rtx5090": Card(
        "NVIDIA GeForce RTX 5090",
        (12, 0),
        33677180928,
        170,
        128,
        1536,
        100 * _KIB,
        96 * _MIB,
        2.407,
        64 * GB,
        _SHARED_BY_A_NODE,
    ),
}


def description(card: Card) -> str:
    """The card as a GpuTargetConfigProto of openxla/xla in text form."""
    major, minor = card.capability
    # OpenXLA takes a card it finds to have what is its capability's alone from 9.0 on
    # (cuda_executor.cc). Without that the compiler dies of a kernel of ours for 12.0, which the
    # instructions of 12.0a can do.
    features = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    # Turing divides 64 KiB at most to a block; later ones keep one for the system.
    block = card.shared - (_KIB if major > 7 else 0)
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  core_count: {card.cores} fpus_per_core: {card.lanes} clock_rate_ghz: {card.clock_ghz}
  device_memory_size: {card.memory} memory_bandwidth: {memory_bandwidth(card.kind):.0f} l2_cache_size: {card.cache}
  shared_memory_per_core: {card.shared} shared_memory_per_block: 49152 shared_memory_per_block_optin: {block}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_core_limit: {card.threads} threads_per_block_limit: 1024 threads_per_warp: 32
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{card.kind}"
"""
