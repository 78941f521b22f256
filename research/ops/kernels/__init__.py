"""Kernels for accelerators, each beside its XLA reference."""
