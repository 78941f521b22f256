"""Adapters as peft stores them, in and out."""
