"""One file a family: its names and layouts in Hugging Face folders, and its config.json, in both
directions."""
