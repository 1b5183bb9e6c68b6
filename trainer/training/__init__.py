"""The training loop and its Ray workers."""
