"""The inpainting job: image files and masks in, inpainted files out.

The names that the command line offers are here, where they cost no import of Beam and TensorFlow.
"""

MATCHES = ("stem", "path", "one", "csv")  # how `inputs` finds the mask of an image
