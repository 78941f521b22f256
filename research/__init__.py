"""Graft: weights are a tree, and everything done to a model is a graft on that tree."""
