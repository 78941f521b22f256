"""Quantized weights in the file format of transformers with bitsandbytes: reading and writing."""
