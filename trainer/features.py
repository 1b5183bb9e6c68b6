"""The perceptual network: VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) up to its third pooling.

Convention. The bundled weights are those of Keras: BGR in 0..255 minus the ImageNet mean. The weights of the
paper's loss (arXiv 1804.07723, section 3.3) were chosen with PyTorch's: RGB in 0..1 minus the mean, over a
standard deviation of about 0.225 per channel. Convolution, ReLU and max pooling without biases are homogeneous,
so dividing the preprocessed input and every bias by s divides every feature by s; s = 255 * 0.225 = 57.375 gives
Keras's features at PyTorch's scale:

    features(rgb) = keras_features(255 * bgr - mean) / 57.375

Channel order and scale are folded into the first kernel. The mean is not: zero padding comes after it.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from keras import layers

BUNDLED_WEIGHTS = Path(__file__).parent / "assets" / "vgg16_blocks1-3.npz"
# Output channels of each convolution, one block a row; each block ends in 2x2 max pooling.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256))
MEAN_RGB = (123.68, 116.779, 103.939)
SCALE = 255 * 0.225


def build_features(weights: str | Path | None = None, dtype: str | keras.DTypePolicy | None = None) -> keras.Model:
    """Builds the frozen feature extractor.

    Input: RGB images [B, H, W, 3] of any float dtype, nominally in [0, 1]; H and W at least 8. Output: the list
    pool1 [B, H/2, W/2, 64], pool2 [B, H/4, W/4, 128], pool3 [B, H/8, W/8, 256] (rounded down) in the
    compute dtype, at PyTorch's scale (see the module's docstring). No weight is trainable.

    Args:
        weights: a .npz file in Keras's convention with `<layer>/kernel` and `<layer>/bias`, float; the
            bundled file by default.
        dtype: dtype policy of the layers; Keras's global policy by default.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an array is missing, superfluous, misshapen, not of floats or not finite.
    """
    arrays = load_weights(BUNDLED_WEIGHTS if weights is None else weights)
    policy = keras.dtype_policies.get(dtype)
    x = images = keras.Input((None, None, 3), name="rgb", dtype="float32")
    x = layers.Rescaling(1.0, offset=[-m / 255 for m in MEAN_RGB], dtype=policy, name="subtract_mean")(x)
    pools = []
    for b, block in enumerate(BLOCKS, start=1):
        for c, filters in enumerate(block, start=1):
            name = f"block{b}_conv{c}"
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", dtype=policy, name=name)(x)
        x = layers.MaxPooling2D(2, dtype=policy, name=f"pool{b}")(x)
        pools.append(x)
    model = keras.Model(images, pools, name="vgg16_pool3")
    model.trainable = False
    for name in _layer_shapes():
        kernel, bias = arrays[f"{name}/kernel"], arrays[f"{name}/bias"] / SCALE
        if name == "block1_conv1":
            kernel = kernel[:, :, ::-1] * (255 / SCALE)  # BGR of 0..255 to RGB of 0..1
        model.get_layer(name).set_weights([kernel, bias])
    return model


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a weights file, as float32, each checked by name, shape, type and finiteness.

    Raises: as `build_features`.
    """
    expected = {f"{name}/{key}": shape for name, pair in _layer_shapes().items() for key, shape in pair.items()}
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if arrays.keys() != expected.keys():
        missing, extra = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
        raise ValueError(
            f"{path}: expected the {len(expected)} arrays of VGG-16's blocks 1 to 3. "
            f"Received {len(arrays)} arrays: missing {missing}, unexpected {extra}."
        )
    for name, shape in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            finite = "" if array.dtype.kind != "f" or np.isfinite(array).all() else " with NaN or infinity"
            raise ValueError(
                f"{path}: expected {name} to be finite floats of shape {shape}. "
                f"Received {array.dtype} of shape {array.shape}{finite}."
            )
    return {name: array.astype("float32") for name, array in arrays.items()}


def _layer_shapes():
    shapes, channels = {}, 3
    for b, block in enumerate(BLOCKS, start=1):
        for c, filters in enumerate(block, start=1):
            shapes[f"block{b}_conv{c}"] = {"kernel": (3, 3, channels, filters), "bias": (filters,)}
            channels = filters
    return shapes
