"""The perceptual network: VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) up to its third pooling.

Weights come from any of their published files (`LossConfig.vgg`):

    bundled              the file that ships with the project: Keras's weights
    keras                keras.applications' own, downloaded by Keras on first use (ImageNet, no top)
    keras:FILE           .npz with <layer>/kernel and <layer>/bias, .h5 of Keras 2 or 3, or .weights.h5
    torchvision:FILE     state dict of torchvision's vgg16: .pth, or .npz with features.0.weight, ...

All are converted to PyTorch's convention, for which the paper's loss weights were chosen (arXiv 1804.07723,
section 3.3): kernels for `rgb - mean` with RGB in [0, 1], and features at the scale of inputs divided by a standard
deviation of about 0.225.

* torchvision's weights expect (rgb - mean) / std: the first kernel is divided by std, channel by channel.
* Keras's expect BGR in 0..255 minus the mean. Convolution, ReLU and max pooling without biases are homogeneous,
  so dividing the input and every bias by s divides every feature by s; s = 255 * 0.225 = 57.375 gives
  Keras's features at PyTorch's scale: features(rgb) = keras_features(255 * bgr - mean) / 57.375. Channel order
  and scale are folded into the first kernel.

The mean cannot be folded, because zero padding comes after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from trainer import storage, weight_files
from trainer.errors import UserError

BUNDLED = Path(__file__).parents[1] / "assets" / "vgg16_blocks1-3.npz"
# Output channels of each convolution, one row per block; each block ends in 2x2 max pooling.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256))
SCALE = 255 * 0.225
KERAS_MEAN_RGB = (123.68, 116.779, 103.939)
TORCH_MEAN_RGB, TORCH_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

LAYERS = tuple(f"block{b}_conv{c}" for b, block in enumerate(BLOCKS, 1) for c in range(1, len(block) + 1))
# Their indices in torchvision's `features`, and the names of VGG-16's other arrays in either kind of file.
_TORCH_INDICES = (0, 2, 5, 7, 10, 12, 14)
_KERAS_REST = re.compile(r"(block[45]_conv[123]|fc[12]|predictions)/(kernel|bias)")
_TORCH_REST = re.compile(r"(features\.(17|19|21|24|26|28)|classifier\.[036])\.(weight|bias)")


@dataclass(frozen=True)
class VGGWeights:
    """Kernels and biases for the input `rgb - mean`, RGB in [0, 1].

    Attributes:
        arrays: `<layer>/kernel` float32 [3, 3, in, out] and `<layer>/bias` float32 [out] for each of `LAYERS`.
        mean: of each channel, in [0, 1].
    """

    arrays: dict[str, np.ndarray]
    mean: tuple[float, float, float]


def build_features(vgg: str = "bundled", dtype: str | keras.DTypePolicy | None = None) -> keras.Model:
    """Builds the frozen feature extractor.

    Input: RGB images [B, H, W, 3] of any float dtype, nominally in [0, 1]; H and W at least 8. Output: the list
    pool1 [B, H/2, W/2, 64], pool2 [B, H/4, W/4, 128], pool3 [B, H/8, W/8, 256] (rounded down) in the
    compute dtype, at PyTorch's scale. No weight is trainable.

    Args:
        vgg: source of the weights, as in `LossConfig.vgg`.
        dtype: dtype policy of the layers; Keras's global policy by default.

    Raises:
        ValueError, UserError: as `load_weights`.
    """
    weights = load_weights(vgg)
    policy = keras.dtype_policies.get(dtype)
    x = images = keras.Input((None, None, 3), name="rgb", dtype="float32")
    x = layers.Rescaling(1.0, offset=[-m for m in weights.mean], dtype=policy, name="subtract_mean")(x)
    pools = []
    for b, block in enumerate(BLOCKS, start=1):
        for c, filters in enumerate(block, start=1):
            name = f"block{b}_conv{c}"
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", dtype=policy, name=name)(x)
        x = layers.MaxPooling2D(2, dtype=policy, name=f"pool{b}")(x)
        pools.append(x)
    model = keras.Model(images, pools, name="vgg16_pool3")
    model.trainable = False
    for name in LAYERS:
        model.get_layer(name).set_weights([weights.arrays[f"{name}/kernel"], weights.arrays[f"{name}/bias"]])
    return model


def load_weights(source: str) -> VGGWeights:
    """Reads the weights of a source (see the module's docstring); checks name, shape and finiteness of each array.

    Raises:
        ValueError: `source` is not one of the forms above.
        UserError: the file is missing or not of that kind; an array is missing, unexpected, misshapen, not of
            floats or not finite; or Keras could not download its file.
    """
    kind, colon, address = source.partition(":")
    if kind == "torchvision" and address:
        arrays = _read_torchvision(address)
        _scale_first(arrays, 1 / np.array(TORCH_STD_RGB))
        return VGGWeights(arrays, TORCH_MEAN_RGB)
    if source == "bundled":
        raw, name = weight_files.read_npz(BUNDLED.read_bytes(), str(BUNDLED)), str(BUNDLED)
    elif source == "keras":
        raw, name = _download_keras(), "keras.applications.VGG16"
    elif kind == "keras" and address:
        raw, name = _read_keras(address), address
    else:
        raise ValueError(f"VGG weights: expected bundled, keras, keras:FILE or torchvision:FILE. Received {source!r}.")
    arrays = _checked(raw, _shapes(), _KERAS_REST, name)
    for layer in LAYERS:
        arrays[f"{layer}/bias"] = arrays[f"{layer}/bias"] / np.float32(SCALE)
    first = f"{LAYERS[0]}/kernel"
    arrays[first] = arrays[first][:, :, ::-1]  # BGR to RGB
    _scale_first(arrays, 255 / SCALE)
    red, green, blue = KERAS_MEAN_RGB
    return VGGWeights(arrays, (red / 255, green / 255, blue / 255))


def _scale_first(arrays: dict[str, np.ndarray], factors) -> None:
    kernel = arrays[f"{LAYERS[0]}/kernel"]
    factors = np.broadcast_to(factors, 3)[:, None]
    arrays[f"{LAYERS[0]}/kernel"] = (kernel * factors).astype("float32")


def _download_keras() -> dict[str, np.ndarray]:
    try:
        network = keras.applications.VGG16(weights="imagenet", include_top=False)
    except Exception as error:  # the type keras.utils.get_file raises when a download fails
        raise UserError(f"Keras could not provide VGG-16's weights: {error}") from None
    return _in_order({name: network.get_layer(name).get_weights() for name in LAYERS})


def _read_keras(address: str) -> dict[str, np.ndarray]:
    data = weight_files.fetch(storage.normalize(address))
    if not address.endswith(".h5"):
        return weight_files.read_npz(data, address)
    stored = weight_files.read_keras_h5(data, address)
    if "conv2d" in stored:  # .weights.h5 numbers the convolutions of a model
        names = [*LAYERS, *(f"block{b}_conv{c}" for b in (4, 5) for c in (1, 2, 3))]
        convs = {f"conv2d_{i}" if i else "conv2d": name for i, name in enumerate(names)}
        stored = {convs.get(layer, layer): weights for layer, weights in stored.items()}
    return _in_order({name: list(weights.values()) for name, weights in stored.items()})


def _in_order(weights_of: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    # The names of single weights changed between versions of Keras; the order, kernel before bias, did not.
    pairs = {name: zip(("kernel", "bias"), weights, strict=False) for name, weights in weights_of.items()}
    return {f"{name}/{key}": array for name, pair in pairs.items() for key, array in pair}


def _read_torchvision(address: str) -> dict[str, np.ndarray]:
    stored = weight_files.read_state_dict(weight_files.fetch(storage.normalize(address)), address)
    names: dict[str, str] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for layer, index in zip(LAYERS, _TORCH_INDICES, strict=True):
        names |= {f"features.{index}.weight": f"{layer}/kernel", f"features.{index}.bias": f"{layer}/bias"}
    for key, name in names.items():
        shape = _shapes()[name]
        expected[key] = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
    arrays = _checked(stored, expected, _TORCH_REST, address)
    return {names[key]: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for key, a in arrays.items()}


def _checked(
    arrays: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]], rest: re.Pattern, name: str
) -> dict[str, np.ndarray]:
    """The `expected` arrays as float32; other arrays are refused unless their names match `rest`."""
    missing = sorted(expected.keys() - arrays.keys())
    extra = sorted(key for key in arrays.keys() - expected.keys() if not rest.fullmatch(key))
    if missing or extra:
        raise UserError(
            f"{name}: expected the {len(expected)} arrays of VGG-16's blocks 1 to 3. "
            f"Received {len(arrays)} arrays: missing {missing}, unexpected {extra}."
        )
    for key, shape in expected.items():
        array = arrays[key]
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            finite = "" if array.dtype.kind != "f" or np.isfinite(array).all() else " with NaN or infinity"
            raise UserError(
                f"{name}: expected {key} to be finite floats of shape {shape}. "
                f"Received {array.dtype} of shape {array.shape}{finite}."
            )
    return {key: arrays[key].astype("float32") for key in expected}


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for name, filters in zip(LAYERS, (filters for block in BLOCKS for filters in block), strict=True):
        shapes |= {f"{name}/kernel": (3, 3, channels, filters), f"{name}/bias": (filters,)}
        channels = filters
    return shapes
