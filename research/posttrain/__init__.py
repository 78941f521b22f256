"""Training on texts that the model has written: rewards, the sandbox for code, sampling."""
