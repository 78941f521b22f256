"""Optimized HLO modules as text, read into instructions, calls and trip counts."""
