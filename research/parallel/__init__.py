"""Where arrays live: mesh axes and their roles, the mesh of a run, shardings, collectives,
processes."""
