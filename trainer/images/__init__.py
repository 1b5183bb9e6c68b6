"""Image files as arrays of RGB pixels (`rgb`) or of their own depth and channels (`pictures`), and back.

The names that command lines offer are here, where they cost no import of OpenCV and Pillow.
"""

EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}  # of the formats that `pictures.encode` writes
FORMATS = tuple(EXTENSIONS)
