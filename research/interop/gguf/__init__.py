"""GGUF, llama.cpp's format, read and written: header, tensors, hyperparameters and tokenizer."""
