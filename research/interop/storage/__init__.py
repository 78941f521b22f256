"""What all formats share: named tensors, their layouts, and a checkpoint opened for reading."""
