"""Rows of NVIDIA cards, and the description of them that OpenXLA's compiler wants."""

from research.devices.device import GB, GBIT, GIB, Device, Multiprocessors, tera

NODE = 8  # cards of one machine, as in HGX and DGX boards and the largest machines of the clouds
KIB, MIB = 2**10, 2**20

# Peaks and bandwidth, dense: a sheet that prints only "with sparsity" is halved.
#   V100: datasheet, January 2020. T4: datasheet, 2019. Neither multiplies bfloat16 in its tensor
#   cores. A100: datasheet, June 2021. A10: datasheet, March 2021. A40: datasheet, 2021. RTX A6000:
#   datasheet, 2020. RTX 3090: GA102 architecture whitepaper, table 9. L4, L40S: datasheets, 2023.
#   L40: datasheet, 2022. RTX 6000 Ada: datasheet, 2023. RTX 4090: Ada GPU architecture whitepaper,
#   appendix A. H100: architecture whitepaper, table 1 (SXM5, PCIe), and product page (NVL). H200:
#   datasheet (SXM, NVL). GH200: datasheet, the part with 96 GB of HBM3. B200 and GB200: Blackwell
#   architecture technical brief, table 3 (HGX B200 at 1000 W, GB200 at 1200 W). RTX 5090: RTX
#   Blackwell architecture whitepaper, appendix A.
# Watts: the rated power of the same sheets; a GH200's is configured from 450 to 1000.
# Capability: developer.nvidia.com/cuda-gpus.
# Memory: the total that the driver shows, less than is sold. A100 80 GB, H100, B200: the
#   descriptions of openxla/xla, whose figures are the driver's. H200 and RTX 4090: as PyTorch shows
#   it. The others: deviceQuery's, with error correction where a card has it.
# Multiprocessors: xla/backends/gpu/target_config/specs of openxla/xla for A100, H100, H200, B200;
#   T4: Turing architecture whitepaper, table 4; L4: Ada architecture whitepaper; RTX 4090 and
#   5090: as above. Threads and shared memory by capability: CUDA C++ Programming Guide.
# Inside a node: NVLink's total of both directions is 600, 900, 900 and 1800 GB/s on the sheets of
#   A100, H100, H200 and B200; the others have 16 lanes of PCI Express 3, 4, 4 and 5.
# Between nodes: an adapter for each card of 200 Gbit/s in DGX A100, of 400 in DGX H100, H200 and
#   B200. Nobody builds pods of the rest: one adapter of 100 Gbit/s a node is assumed, shared by
#   eight, as the largest L4 machines of the clouds have.
_SHARED_ADAPTER = 100 * GBIT / NODE

_A100 = tera(bfloat16=312, float16=312, tfloat32=156, int8=624)
_GA100 = Multiprocessors(108, 64, 2048, 164 * KIB, 40 * MIB, clock_ghz=1.41)
_H100 = tera(bfloat16=989.4, float16=989.4, tfloat32=494.7, int8=1978.9, float8=1978.9)
_H100_PCIE = tera(bfloat16=756, float16=756, tfloat32=378, int8=1513, float8=1513)
_HOPPER_NVL = tera(bfloat16=835.5, float16=835.5, tfloat32=417.5, int8=1670.5, float8=1670.5)
_GH100 = Multiprocessors(132, 128, 2048, 228 * KIB, 50 * MIB, clock_ghz=1.98)

_VOLTA = tuple(
    Device(
        kind,
        bandwidth * GB,
        tera(float16=rate),
        variants=("Tesla V100",),
        capability=(7, 0),
        watts=watts,
    )
    for kind, bandwidth, rate, watts in (
        ("Tesla V100-SXM2-16GB", 900, 125, 300),
        ("Tesla V100-SXM2-32GB", 900, 125, 300),
        ("Tesla V100-PCIE-16GB", 900, 112, 250),
        ("Tesla V100-PCIE-32GB", 900, 112, 250),
        ("Tesla V100S-PCIE-32GB", 1134, 130, 250),
    )
)

_TURING = (
    Device(
        "Tesla T4",
        320 * GB,
        tera(float16=65, int8=130),
        variants=(
            "Tesla T4", "Quadro RTX", "NVIDIA TITAN RTX", "NVIDIA GeForce RTX 2060",
            "NVIDIA GeForce RTX 2070", "NVIDIA GeForce RTX 2080",
        ),
        capability=(7, 5),
        watts=70,
        target="t4",
        memory=15655829504,
        inside=16 * GB,
        between=_SHARED_ADAPTER,
        processors=Multiprocessors(40, 64, 1024, 64 * KIB, 4 * MIB, clock_ghz=1.59),
    ),
)  # fmt: skip

_AMPERE = (
    Device(
        "NVIDIA A100-SXM4-40GB",
        1555 * GB,
        _A100,
        variants=("NVIDIA A100",),
        capability=(8, 0),
        watts=400,
        target="a100-40",
        memory=42298834944,
        inside=300 * GB,
        between=200 * GBIT,
        processors=_GA100,
    ),
    Device(
        "NVIDIA A100-SXM4-80GB",
        2039 * GB,
        _A100,
        variants=("NVIDIA A100",),
        capability=(8, 0),
        watts=400,
        target="a100-80",
        memory=85100068864,
        inside=300 * GB,
        between=200 * GBIT,
        processors=_GA100,
    ),
    Device("NVIDIA A100-PCIE-40GB", 1555 * GB, _A100, capability=(8, 0), watts=250),
    Device("NVIDIA A100 80GB PCIe", 1935 * GB, _A100, capability=(8, 0), watts=300),
    Device(
        "NVIDIA A10",
        600 * GB,
        tera(bfloat16=125, float16=125, tfloat32=62.5, int8=250),
        variants=("NVIDIA A10",),
        capability=(8, 6),
        watts=150,
    ),
    Device(
        "NVIDIA A40",
        696 * GB,
        tera(bfloat16=149.7, float16=149.7, tfloat32=74.8, int8=299.3),
        variants=("NVIDIA A40",),
        capability=(8, 6),
        watts=300,
    ),
    Device(
        "NVIDIA RTX A6000",
        768 * GB,
        tera(bfloat16=154.8, float16=154.8, tfloat32=77.4, int8=309.7),
        variants=("NVIDIA RTX A6000",),
        capability=(8, 6),
        watts=300,
    ),
    Device(
        "NVIDIA GeForce RTX 3090",
        936 * GB,
        tera(bfloat16=71, float16=71, tfloat32=35.6, int8=284),
        variants=("NVIDIA GeForce RTX 3090",),
        capability=(8, 6),
        watts=350,
    ),
)

_ADA = (
    Device(
        "NVIDIA L4",
        300 * GB,
        tera(bfloat16=121, float16=121, tfloat32=60, int8=242.5, float8=242.5),
        variants=("NVIDIA L4",),
        capability=(8, 9),
        watts=72,
        target="l4",
        memory=23583784960,
        inside=32 * GB,
        between=_SHARED_ADAPTER,
        processors=Multiprocessors(58, 128, 1536, 100 * KIB, 48 * MIB, clock_ghz=2.04),
    ),
    Device(
        "NVIDIA L40",
        864 * GB,
        tera(bfloat16=181.05, float16=181.05, tfloat32=90.5, int8=362, float8=362),
        variants=("NVIDIA L40",),
        capability=(8, 9),
        watts=300,
    ),
    Device(
        "NVIDIA L40S",
        864 * GB,
        tera(bfloat16=362.05, float16=362.05, tfloat32=183, int8=733, float8=733),
        variants=("NVIDIA L40S",),
        capability=(8, 9),
        watts=350,
    ),
    Device(
        "NVIDIA RTX 6000 Ada Generation",
        960 * GB,
        tera(bfloat16=364.2, float16=364.2, tfloat32=182.1, int8=728.5, float8=728.5),
        variants=("NVIDIA RTX 6000 Ada Generation",),
        capability=(8, 9),
        watts=300,
    ),
    Device(
        "NVIDIA GeForce RTX 4090",
        1008 * GB,
        tera(bfloat16=165.2, float16=165.2, tfloat32=82.6, int8=660.6, float8=330.3),
        variants=("NVIDIA GeForce RTX 4090",),
        capability=(8, 9),
        watts=450,
        target="rtx4090",
        memory=int(23.65 * GIB),
        inside=32 * GB,
        between=_SHARED_ADAPTER,
        processors=Multiprocessors(128, 128, 1536, 100 * KIB, 72 * MIB, clock_ghz=2.52),
    ),
)

_HOPPER = (
    Device(
        "NVIDIA H100 80GB HBM3",
        3350 * GB,
        _H100,
        variants=("NVIDIA H100",),
        capability=(9, 0),
        watts=700,
        target="h100",
        memory=84942979072,
        inside=450 * GB,
        between=400 * GBIT,
        processors=_GH100,
    ),
    Device("NVIDIA H100 PCIe", 2000 * GB, _H100_PCIE, capability=(9, 0), watts=350),
    Device("NVIDIA H100 NVL", 3900 * GB, _HOPPER_NVL, capability=(9, 0), watts=400),
    Device(
        "NVIDIA H200",
        4800 * GB,
        _H100,
        variants=("NVIDIA H200",),
        capability=(9, 0),
        watts=700,
        target="h200",
        memory=int(139.81 * GIB),
        inside=450 * GB,
        between=400 * GBIT,
        processors=_GH100,
    ),
    Device("NVIDIA H200 NVL", 4800 * GB, _HOPPER_NVL, capability=(9, 0), watts=600),
    Device("NVIDIA GH200 480GB", 4000 * GB, _H100, variants=("NVIDIA GH200",), capability=(9, 0)),
)

_BLACKWELL = (
    Device(
        "NVIDIA B200",
        8000 * GB,
        tera(bfloat16=2250, float16=2250, tfloat32=1100, int8=4500, float8=4500),
        variants=("NVIDIA B200",),
        capability=(10, 0),
        watts=1000,
        target="b200",
        memory=191514411008,
        inside=900 * GB,
        between=400 * GBIT,
        processors=Multiprocessors(148, 128, 2048, 228 * KIB, 132644864, clock_ghz=1.965),
    ),
    Device(
        "NVIDIA GB200",
        8000 * GB,
        tera(bfloat16=2500, float16=2500, tfloat32=1250, int8=5000, float8=5000),
        variants=("NVIDIA GB200",),
        capability=(10, 0),
        watts=1200,
    ),
    Device(
        "NVIDIA GeForce RTX 5090",
        1792 * GB,
        tera(bfloat16=209.5, float16=209.5, tfloat32=104.8, int8=838, float8=419),
        variants=("NVIDIA GeForce RTX 5090",),
        capability=(12, 0),
        watts=575,
        target="rtx5090",
        memory=33677180928,
        inside=64 * GB,
        between=_SHARED_ADAPTER,
        processors=Multiprocessors(170, 128, 1536, 100 * KIB, 96 * MIB, clock_ghz=2.407),
    ),
)

CARDS = _VOLTA + _TURING + _AMPERE + _ADA + _HOPPER + _BLACKWELL


def description(card: Device) -> str:
    """A card that `fit` compiles for, as a GpuTargetConfigProto of openxla/xla in text form."""
    if card.capability is None or card.processors is None:
        raise ValueError(f"{card.kind} has no row of what a compiler wants to know of it")
    major, minor = card.capability
    chip = card.processors
    # OpenXLA takes a card it finds to have what is its capability's alone from 9.0 on
    # (cuda_executor.cc). Without that the compiler dies of a kernel of ours for 12.0, which the
    # instructions of 12.0a can do.
    features = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    # Turing divides 64 KiB at most to a block; later ones keep one for the system.
    block = chip.shared - (KIB if major > 7 else 0)
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  core_count: {chip.cores} fpus_per_core: {chip.lanes} clock_rate_ghz: {chip.clock_ghz}
  device_memory_size: {card.memory} memory_bandwidth: {card.memory_bandwidth:.0f}
  l2_cache_size: {chip.cache}
  shared_memory_per_core: {chip.shared} shared_memory_per_block: 49152
  shared_memory_per_block_optin: {block}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_core_limit: {chip.threads} threads_per_block_limit: 1024 threads_per_warp: 32
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{card.kind}"
"""
