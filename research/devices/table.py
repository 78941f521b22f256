"""Published peak arithmetic and memory bandwidth of accelerators, for utilisation figures and
roofline estimates.

Every figure is the maker's, dense (a sheet that prints only "with sparsity" is halved), at boost
clock, with 32-bit accumulation, and per `jax.Device`: where JAX makes two devices of one chip the
chip's figure is halved. A chip or a type that is not listed answers None, because a wrong peak
gives a wrong utilisation that looks right.
"""

from dataclasses import dataclass, field

T = 1e12  # FLOP/s, or operations a second for int8
GB = 1e9  # bytes/s


@dataclass(frozen=True)
class Chip:
    """Peaks of one device: FLOP/s by type, and bytes/s of its memory. A type it lacks in hardware
    is left out."""

    memory_bandwidth: float
    flops: dict[str, float] = field(default_factory=dict)


def _chip(bandwidth: float, **tera: float) -> Chip:
    return Chip(bandwidth * GB, {name: value * T for name, value in tera.items()})


# Cloud TPU documentation, the "System architecture" table of each generation:
# cloud.google.com/tpu/docs/v2, v3, v4, v5e, v5p, v6e, tpu7x. v2 and v3 show each of the two
# TensorCores of a chip as a device, and so does TPU7x; v4 and v5p join them into one.
_TPU_V5E = _chip(819, bfloat16=197, int8=393)
# int8 of v5p: cloud.google.com/blog "Introducing Cloud TPU v5p and AI Hypercomputer", 6 December
# 2023. float8 of v5p and v6e: the comparison table of tpu7x.
_TPU_V5P = _chip(2765, bfloat16=459, int8=918, float8=459)
_TPU_V6E = _chip(1638, bfloat16=918, int8=1836, float8=918)
_TPU = {
    "TPU v2": _chip(700 / 2, bfloat16=45 / 2),
    "TPU v3": _chip(900 / 2, bfloat16=123 / 2),
    "TPU v4": _chip(1200, bfloat16=275, int8=275),
    "TPU v5 lite": _TPU_V5E,
    "TPU v5e": _TPU_V5E,
    "TPU v5": _TPU_V5P,
    "TPU v5p": _TPU_V5P,
    "TPU v6 lite": _TPU_V6E,
    "TPU v6e": _TPU_V6E,
    "TPU7x": _chip(7380 / 2, bfloat16=2307 / 2, float8=4614 / 2),
}

# NVIDIA V100 datasheet (January 2020) and T4 datasheet (2019). Neither multiplies bfloat16 in its
# tensor cores.
_VOLTA_TURING = {
    "Tesla V100-SXM2-16GB": _chip(900, float16=125),
    "Tesla V100-SXM2-32GB": _chip(900, float16=125),
    "Tesla V100-PCIE-16GB": _chip(900, float16=112),
    "Tesla V100-PCIE-32GB": _chip(900, float16=112),
    "Tesla V100S-PCIE-32GB": _chip(1134, float16=130),
    "Tesla T4": _chip(320, float16=65, int8=130),
}

# NVIDIA A100 datasheet (June 2021), A10 datasheet (March 2021), A40 datasheet (2021), RTX A6000
# datasheet (2020), and for the RTX 3090 the GA102 architecture whitepaper, table 9.
_A100 = {"bfloat16": 312, "float16": 312, "tfloat32": 156, "int8": 624}
_AMPERE = {
    "NVIDIA A100-SXM4-40GB": _chip(1555, **_A100),
    "NVIDIA A100-SXM4-80GB": _chip(2039, **_A100),
    "NVIDIA A100-PCIE-40GB": _chip(1555, **_A100),
    "NVIDIA A100 80GB PCIe": _chip(1935, **_A100),
    "NVIDIA A10": _chip(600, bfloat16=125, float16=125, tfloat32=62.5, int8=250),
    "NVIDIA A40": _chip(696, bfloat16=149.7, float16=149.7, tfloat32=74.8, int8=299.3),
    "NVIDIA RTX A6000": _chip(768, bfloat16=154.8, float16=154.8, tfloat32=77.4, int8=309.7),
    "NVIDIA GeForce RTX 3090": _chip(936, bfloat16=71, float16=71, tfloat32=35.6, int8=284),
}

# NVIDIA L4 datasheet (2023), L40S datasheet (2023), L40 datasheet (2022), RTX 6000 Ada datasheet
# (2023), and for the RTX 4090 the Ada GPU architecture whitepaper, appendix A.
_ADA = {
    "NVIDIA L4": _chip(300, bfloat16=121, float16=121, tfloat32=60, int8=242.5, float8=242.5),
    "NVIDIA L40": _chip(864, bfloat16=181.05, float16=181.05, tfloat32=90.5, int8=362, float8=362),
    "NVIDIA L40S": _chip(864, bfloat16=362.05, float16=362.05, tfloat32=183, int8=733, float8=733),
    "NVIDIA RTX 6000 Ada Generation": _chip(
        960, bfloat16=364.2, float16=364.2, tfloat32=182.1, int8=728.5, float8=728.5
    ),
    "NVIDIA GeForce RTX 4090": _chip(
        1008, bfloat16=165.2, float16=165.2, tfloat32=82.6, int8=660.6, float8=330.3
    ),
}

# NVIDIA H100 architecture whitepaper, table 1 (SXM5, PCIe); H100 product page (NVL); H200 datasheet
# (SXM, NVL); GH200 datasheet, the part with 96 GB of HBM3.
_H100_SXM = {
    "bfloat16": 989.4,
    "float16": 989.4,
    "tfloat32": 494.7,
    "int8": 1978.9,
    "float8": 1978.9,
}
_H100_PCIE = {"bfloat16": 756, "float16": 756, "tfloat32": 378, "int8": 1513, "float8": 1513}
_HOPPER_NVL = {
    "bfloat16": 835.5,
    "float16": 835.5,
    "tfloat32": 417.5,
    "int8": 1670.5,
    "float8": 1670.5,
}
_HOPPER = {
    "NVIDIA H100 80GB HBM3": _chip(3350, **_H100_SXM),
    "NVIDIA H100 PCIe": _chip(2000, **_H100_PCIE),
    "NVIDIA H100 NVL": _chip(3900, **_HOPPER_NVL),
    "NVIDIA H200": _chip(4800, **_H100_SXM),
    "NVIDIA H200 NVL": _chip(4800, **_HOPPER_NVL),
    "NVIDIA GH200 480GB": _chip(4000, **_H100_SXM),
}

# NVIDIA Blackwell architecture technical brief, table 3 (HGX B200 at 1000 W; GB200 at 1200 W), and
# for the RTX 5090 the RTX Blackwell architecture whitepaper, appendix A.
_BLACKWELL = {
    "NVIDIA B200": _chip(8000, bfloat16=2250, float16=2250, tfloat32=1100, int8=4500, float8=4500),
    "NVIDIA GB200": _chip(8000, bfloat16=2500, float16=2500, tfloat32=1250, int8=5000, float8=5000),
    "NVIDIA GeForce RTX 5090": _chip(
        1792, bfloat16=209.5, float16=209.5, tfloat32=104.8, int8=838, float8=419
    ),
}

CHIPS: dict[str, Chip] = {**_TPU, **_VOLTA_TURING, **_AMPERE, **_ADA, **_HOPPER, **_BLACKWELL}


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """Peak FLOP/s of one `jax.Device` by its `device_kind` for products in `dtype`, or None where
    it is not published.

    `dtype` is a numpy name; every float8 type counts as "float8". "float32" is always None: which
    unit runs such a product depends on its precision ("tfloat32" names NVIDIA's 19-bit one, and a
    TPU makes bfloat16 passes).
    """
    chip = CHIPS.get(device_kind)
    return chip and chip.flops.get("float8" if dtype.startswith("float8") else dtype)


def memory_bandwidth(device_kind: str) -> float | None:
    """Peak bytes/s between one `jax.Device` and its memory, or None where it is not published."""
    chip = CHIPS.get(device_kind)
    return chip and chip.memory_bandwidth
