"""Weights as transformers stores them with bitsandbytes, in and out."""
