"""The perceptual network: VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) up to its third pooling.

Its features are those of PyTorch's convention, whichever file the weights come from (see `vgg_weights`).
"""

from __future__ import annotations

import keras
from keras import layers

from trainer.model import vgg_weights


def build_features(vgg: str = "bundled", dtype: str | keras.DTypePolicy | None = None) -> keras.Model:
    """Builds the frozen feature extractor.

    Input: RGB images [B, H, W, 3] of any float dtype, nominally in [0, 1]; H and W at least 8. Output: the list
    pool1 [B, H/2, W/2, 64], pool2 [B, H/4, W/4, 128], pool3 [B, H/8, W/8, 256] (rounded down) in the
    compute dtype, at PyTorch's scale. No weight is trainable.

    Args:
        vgg: where the weights come from, as in `LossConfig.vgg`.
        dtype: dtype policy of the layers; Keras's global policy by default.

    Raises:
        ValueError, UserError: as `vgg_weights.load_weights`.
    """
    weights = vgg_weights.load_weights(vgg)
    policy = keras.dtype_policies.get(dtype)
    x = images = keras.Input((None, None, 3), name="rgb", dtype="float32")
    x = layers.Rescaling(1.0, offset=[-m for m in weights.mean], dtype=policy, name="subtract_mean")(x)
    pools = []
    for b, block in enumerate(vgg_weights.BLOCKS, start=1):
        for c, filters in enumerate(block, start=1):
            name = f"block{b}_conv{c}"
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", dtype=policy, name=name)(x)
        x = layers.MaxPooling2D(2, dtype=policy, name=f"pool{b}")(x)
        pools.append(x)
    model = keras.Model(images, pools, name="vgg16_pool3")
    model.trainable = False
    for name in vgg_weights.LAYERS:
        model.get_layer(name).set_weights([weights.arrays[f"{name}/kernel"], weights.arrays[f"{name}/bias"]])
    return model
