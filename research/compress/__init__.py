"""Smaller models: calibration, quantization that looks at data, pruning, less depth and width."""
