"""Adapters in the file format of Hugging Face's peft: reading and writing."""
