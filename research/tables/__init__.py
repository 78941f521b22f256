"""Questions to tables: the engine that answers them, and questions that are made to learn from."""
