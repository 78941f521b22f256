"""Jobs for a model: many documents in, a line of output for each."""
