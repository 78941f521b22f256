"""Checkpoints of other programs, read and written tensor by tensor, with a certificate of each
conversion: Hugging Face folders, GGUF files, peft's adapters and bitsandbytes' matrices.
"""
