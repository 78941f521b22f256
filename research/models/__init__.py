"""Transformers as pure functions on parameter trees."""
