"""Image files as arrays of RGB pixels (`rgb`) or of their own depth and channels (`pictures`), and back.

Choices of command-line options are here, so that parsing them does not import OpenCV and Pillow.
"""

EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}  # of the formats that `pictures.encode` writes
FORMATS = tuple(EXTENSIONS)
