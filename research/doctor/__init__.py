"""A look at a machine: what of Graft works on it, what does not, and what to do about it."""
