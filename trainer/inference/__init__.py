"""Inpainting with a trained network, on arrays of any size.

Choices of command-line options are here, so that parsing them does not import TensorFlow.
"""

DEVICES = ("auto", "cpu", "gpu")  # of `predict.load_model`; auto: a GPU if there is one
EXPORT_FORMATS = ("keras", "saved_model", "onnx")  # of `export_formats.export_model`
