"""Serving: texts that come and go are written together, in pages of one pool of keys and values."""
