"""The page of `pconv try`: paint a hole into a picture, see it filled, save it as the inpainting job would."""
