"""What is fetched or built once and kept: the cache directory and packages of PyPI."""
