"""From text to batches of numpy arrays: sources, tokenizers, packed windows, mixtures, the loader.
No jax in here."""
