"""GGUF files in and out: header, tensors, hyperparameters and tokenizer."""
