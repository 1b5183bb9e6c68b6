"""What an image file announces, and what decoding it will take, from its bytes alone: one module for each big format.

Each parser follows the format's specification, so it says what any decoder may allocate before one has been called.
The numbers are bounds for Pillow 12 and OpenCV 5, which hold different things at the same time; seconds are those of
one core, rounded up. `trainer.images.budget` compares them with what an image may take.
"""

from trainer.images.headers.demand import Demand
from trainer.images.headers.formats import format_of, other_format_of, read_demand

__all__ = ["Demand", "format_of", "other_format_of", "read_demand"]
