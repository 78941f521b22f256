"""Targets of every kind of hardware, for tests."""

NVIDIA = [
    "t4", "a100-40", "a100-80", "l4", "rtx4090", "h100:8", "h100:2x8", "h100:8x8", "h200:2",
    "b200:8", "rtx5090:2",
]  # fmt: skip
TPU = [
    "v4:1x1x1", "v4:2x2x1", "v4:4x4x8", "v5e:1x1", "v5e:2x4", "v5e:16x16", "v5e:16x16@4",
    "v5p:1x1x1", "v5p:2x2x1", "v5p:4x4x4", "v5p:4x4x4@2", "v5p:8x16x16", "v6e:1x1", "v6e:16x16",
    "tpu7x:1x1x1", "tpu7x:2x2x1", "tpu7x:4x4x4@2",
]  # fmt: skip
