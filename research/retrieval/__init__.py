"""Passages of documents, found by the meaning of a question."""
