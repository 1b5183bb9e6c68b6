"""The network of the paper (arXiv 1804.07723, appendix): a UNet of partial convolutions.

Levels are numbered from the image down. `encoder_k` halves the size of level k - 1; `decoder_k` doubles
it again and takes the same level's encoder input as its second branch, so `decoder_1` sees the image:

    encoder_k:  PartialConv2D stride 2  -> BatchNorm (k > 1) -> ReLU
    decoder_k:  [up(decoder_k+1), skip] -> PartialConv2D 3x3 -> BatchNorm -> LeakyReLU 0.2   (k > 1)
    decoder_1:  [up(decoder_2), image]  -> PartialConv2D 3x3 with 3 filters

Masks depend on the input mask alone and have one channel throughout. Each tensor is masked once, where it
is made: an encoder's output serves the next encoder and the skip, and a decoder's is masked before
up-sampling, at a quarter of the pixels.

Departure from the paper's equation: a convolution that BatchNorm follows has no bias. With the moving
statistics the two are the same function, for BatchNorm subtracts the bias with the mean and adds beta.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from trainer.config import UNetConfig
from trainer.model.layers import ApplyMask, BatchNormalization, PartialConv2D

# PyTorch's default, the framework of the paper's authors (its momentum of 0.1 is 0.9 in Keras's words).
BN_MOMENTUM = 0.9
LEAKY_SLOPE = 0.2


def build_unet(
    config: UNetConfig,
    dtype: str | keras.DTypePolicy = "float32",
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    name: str = "pconv_unet",
) -> keras.Model:
    """Builds the network; the paper's by default (32,870,676 parameters, 32,859,796 of them trainable).

    Inputs `[image, mask]`: image [B, H, W, 3] float32 in [0, 1] (what it holds under holes, NaN
    included, changes nothing) and mask [B, H, W, 1] of {0, 1}, 1 = valid. Output [B, H, W, 3] float32,
    nominally in [0, 1] but not clipped; 0 where no valid pixel reaches (with `config.mean` the mean, with
    `config.head` the head's value of 0).

    Args:
        config: depth, filters, kernels and what differs from the paper. `config.image_size` is the size of training
            crops and does not limit what the model accepts.
        dtype: dtype policy of the layers. Weights and masks stay in float32 under the mixed ones.
        height: fixed input height in pixels, or None for any multiple of `config.stride`.
        width: the same for the width.
        seed: of the initial weights (He normal); the same seed gives the same weights in every process.
        name: of the model.

    Raises:
        ValueError: for a height or width that is not a multiple of `config.stride`.
    """
    for key, size in (("height", height), ("width", width)):
        if size is not None and (size < config.stride or size % config.stride):
            fits = max(size // config.stride, 1) * config.stride
            raise ValueError(
                f"build_unet: expected {key} to be a multiple of {config.stride} (2 to the power of {config.depth} "
                f"levels; {fits} would work). Received {key}={size}."
            )
    policy = keras.dtype_policies.get(dtype)
    image = keras.Input((height, width, 3), name="image", dtype="float32")
    mask = keras.Input((height, width, 1), name="mask", dtype="float32")

    def conv(stage, branches, filters, kernel, strides, index, use_bias):
        return PartialConv2D(
            filters,
            kernel,
            strides,
            use_bias=use_bias,
            kernel_initializer=keras.initializers.HeNormal(seed=_layer_seed(seed, index)),
            inputs_masked=True,
            dtype=policy,
            name=f"{stage}_conv",
        )(branches)

    def masked(stage, x, m):
        return ApplyMask(dtype=policy, name=f"{stage}_masked")((x, m)), m

    x = image
    if config.normalizes:
        scale, offset = [1 / std for std in config.std], [-m / s for m, s in zip(config.mean, config.std, strict=True)]
        x = layers.Rescaling(scale, offset, dtype="float32", name="image_normalized")(x)
    levels = [masked("image", x, mask)]
    for k, (filters, kernel) in enumerate(zip(config.filters, config.kernels, strict=True), start=1):
        stage = f"encoder_{k}"
        x, m = conv(stage, levels[-1], filters, kernel, 2, k, use_bias=k == 1)
        if k > 1:
            x = _batch_norm(stage, config, policy)(x)
        x = layers.ReLU(dtype=policy, name=f"{stage}_relu")(x)
        levels.append(masked(stage, x, m) if k > 1 else (x, m))  # without BatchNorm holes are still 0

    x, m = levels.pop()
    for k in range(config.depth, 0, -1):
        stage, skip = f"decoder_{k}", levels.pop()
        up = (
            layers.UpSampling2D(2, interpolation="nearest", dtype=policy, name=f"{stage}_up")(x),
            layers.UpSampling2D(2, interpolation="nearest", dtype="float32", name=f"{stage}_up_mask")(m),
        )
        filters = config.filters[k - 2] if k > 1 else 3
        x, m = conv(stage, [up, skip], filters, 3, 1, 2 * config.depth + 1 - k, use_bias=k == 1)
        if k > 1:
            x = _batch_norm(stage, config, policy)(x)
            x = layers.LeakyReLU(LEAKY_SLOPE, dtype=policy, name=f"{stage}_leaky_relu")(x)
            x, m = masked(stage, x, m)
    if config.head == "sigmoid":
        x = layers.LeakyReLU(LEAKY_SLOPE, dtype=policy, name="head_leaky_relu")(x)
        glorot = keras.initializers.GlorotUniform(seed=_layer_seed(seed, 2 * config.depth + 1))
        x = layers.Conv2D(3, 1, kernel_initializer=glorot, dtype=policy, name="head_conv")(x)
        x = layers.Activation("sigmoid", dtype="float32", name="head_sigmoid")(x)
    if config.normalizes:
        output = layers.Rescaling(list(config.std), list(config.mean), dtype="float32", name="output")(x)
    else:
        output = layers.Activation("linear", dtype="float32", name="output")(x)
    return keras.Model([image, mask], output, name=name)


def freeze_encoder_bn(model: keras.Model, frozen: bool) -> list[str]:
    """Freezes the encoder's BatchNorm layers (statistics, gamma, beta), or thaws them; for `finetune`.

    A frozen layer normalises with its moving statistics in training too, so holes no longer shift them
    (paper, section 4.2). A step that was traced or compiled before keeps its old behaviour: call this first.

    Args:
        model: from `build_unet`, or its saved and loaded copy.
        frozen: True to freeze.

    Returns:
        Names of the layers, from the image down.
    """
    encoder = [x for x in model.layers if isinstance(x, layers.BatchNormalization) and x.name.startswith("encoder_")]
    for layer in encoder:
        layer.trainable = not frozen
    return [layer.name for layer in encoder]


def _batch_norm(stage, config, policy):
    return BatchNormalization(momentum=BN_MOMENTUM, epsilon=config.bn_epsilon, dtype=policy, name=f"{stage}_bn")


def _layer_seed(seed, index):
    """A seed of its own for each layer; seed 0's second layer is not seed 1's first."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)
