"""What a run trains: the methods, and the adapters that they put beside frozen weights."""
