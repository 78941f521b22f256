"""Folders that other programs quantized: GPTQ, AWQ, compressed-tensors, fp8 and MLX, read only."""
