"""Hugging Face folders in and out, family by family."""
