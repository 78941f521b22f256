"""Downloads and the cache directory: what is fetched or built once and kept, packages included."""
