"""What a run minimises: one file an objective, `objective.py` for what they have in common, and
`choose.py` for the table of them all."""
