"""A run: its program, its start, the loop over its feed, and a finished one opened for use."""
