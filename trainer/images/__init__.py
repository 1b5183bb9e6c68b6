"""Image files as arrays of RGB pixels (`rgb`) or of their own depth and channels (`pictures`), and back.

Choices of command-line options are here, so that parsing them does not import OpenCV and Pillow.
"""

EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}  # of the formats that `pictures.encode` writes
FORMATS = tuple(EXTENSIONS)
MOST_PIXELS = 500_000_000  # that one may ask for
HOLES = ("black", "white", "transparent", "opaque")  # what marks holes in mask files
HOLE_LABEL_HELP = (
    "labels that mark holes, in place of --hole: gray values or palette entries, such as 1 or 1,3-5, or colors, such "
    "as #ff0000"
)
THRESHOLD_HELP = (
    "gray values from this fraction of the full range on are white, whatever a mask file holds (default: as it holds "
    "two levels, labels or soft edges, which are split at {})"
)
MAX_PIXELS_HELP = (
    "reject images with more pixels (default 100 million, at most 500 million), and those that would take more to read "
    "than images of so many pixels do: 8 bytes of file, 16 bytes of memory, 0.1 microseconds each. By default 0.8 GB, "
    "1.6 GB and 20 s; with 500 million 4 GB, 8 GB and 60 s, in each worker process"
)
