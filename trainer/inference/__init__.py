"""Inpainting with a trained network, on arrays of any size.

The names that command lines offer are here, where they cost no import of TensorFlow.
"""

DEVICES = ("auto", "cpu", "gpu")  # of `predict.load_model`; auto: a GPU if there is one
EXPORT_FORMATS = ("keras", "saved_model", "onnx")  # of `export_formats.export_model`
