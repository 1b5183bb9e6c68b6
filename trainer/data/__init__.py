"""Datasets of records, and the training batches made from them."""
