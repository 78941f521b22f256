"""Writing with a model: sampling, and decoding token by token from a key-value cache."""
