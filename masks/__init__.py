"""What a hole mask is and how to draw one: uint8 [height, width], 1 = valid, 0 = hole. NumPy and OpenCV alone."""
