"""Checkpoints of others in and out: Hugging Face folders and GGUF files, read and written tensor by
tensor, with proof."""
