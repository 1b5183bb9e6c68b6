"""Inpainting with a trained network, on arrays of any size."""
