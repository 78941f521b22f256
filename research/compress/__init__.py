"""Quantization that looks at data: calibration, GPTQ, AWQ, SmoothQuant."""
