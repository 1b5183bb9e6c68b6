"""The network, its losses, its data and its training."""
