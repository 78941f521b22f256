"""Evaluation: one file a family of metrics."""
