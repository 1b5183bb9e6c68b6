"""The inpainting job: match, load, fill, write."""
