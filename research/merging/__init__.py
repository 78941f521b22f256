"""Merging of models that were trained from one start: their weights become those of one model."""
