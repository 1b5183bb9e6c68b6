"""The network of the paper (arXiv 1804.07723, appendix): a UNet of partial convolutions.

Levels are numbered from the image down. `encoder_k` halves the size of level k - 1; `decoder_k` doubles
it again and takes that encoder's input as its second branch, so `decoder_1` sees the image:

    encoder_k:  PartialConv2D stride 2  -> BatchNorm (k > 1) -> ReLU
    decoder_k:  [up(decoder_k+1), skip] -> PartialConv2D 3x3 -> BatchNorm -> LeakyReLU 0.2   (k > 1)
    decoder_1:  [up(decoder_2), image]  -> PartialConv2D 3x3 with 3 filters

With `UNetConfig.refine` one more stage lies between: decoder_1 is as the others, with so many filters, and

    refine:     [decoder_1, image]      -> PartialConv2D 3x3 with 3 filters

With `UNetConfig.residual` the last convolution begins at 0, and what it computes is added to the interpolated image.
The stages that see the image see the interpolated one after it, in which nothing is a hole: what has to be added to a
value cannot be told without it.

Masks depend on the input mask alone and have one channel throughout. Each tensor is masked once, where it
is created: an encoder's output serves the next encoder and the skip connection, and a decoder's is masked before
upsampling, at a quarter of the pixels.

Departure from the paper's equation: a convolution that BatchNorm follows has no bias. With the moving
statistics the two are the same function: BatchNorm subtracts the bias with the mean and adds beta.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from trainer.config import UNetConfig
from trainer.model.interpolation import InterpolateHoles
from trainer.model.layers import ApplyMask, BatchNormalization, DoubleSize, PartialConv2D

# PyTorch's default, as the paper's authors used PyTorch (its momentum of 0.1 is 0.9 in Keras's terms).
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
    nominally in [0, 1] but not clipped. Where no valid pixel reaches, the output is 0 (with `config.mean` the mean,
    with `config.head` the head's value for 0).

    Args:
        config: depth, filters, kernels and departures from the paper. `config.image_size` is the size of training
            crops and does not limit what the model accepts.
        dtype: dtype policy of the layers. Weights and masks stay in float32 under the mixed ones.
        height: fixed input height in pixels, or None for any multiple of `config.stride`.
        width: likewise.
        seed: seed of the initial weights (He normal); the same seed gives the same weights in every process.
        name: name of the model.

    Raises:
        ValueError: if a height or width is not a multiple of `config.stride`.
    """
    _check_sizes(config, height=height, width=width)
    image = keras.Input((height, width, 3), name="image", dtype="float32")
    mask = keras.Input((height, width, 1), name="mask", dtype="float32")
    builder = _Builder(config, keras.dtype_policies.get(dtype), seed)
    base = InterpolateHoles(name="interpolated")([image, mask]) if config.residual else None
    output = builder.output(builder.decoder(builder.encoder(image, mask), base), base)
    return keras.Model([image, mask], output, name=name)


def freeze_encoder_bn(model: keras.Model, frozen: bool) -> list[str]:
    """Freezes the encoder's BatchNorm layers (statistics, gamma, beta) for `finetune`, or unfreezes them.

    A frozen layer normalizes with its moving statistics in training too, so holes no longer shift them
    (paper, section 4.2). Call this before a training step is traced: a traced one keeps its old behavior.

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


def _check_sizes(config: UNetConfig, **sizes: int | None) -> None:
    for key, size in sizes.items():
        if size is not None and (size < config.stride or size % config.stride):
            fits = max(size // config.stride, 1) * config.stride
            raise ValueError(
                f"build_unet: expected {key} to be a multiple of {config.stride} (2 to the power of {config.depth} "
                f"levels; {fits} would work). Received {key}={size}."
            )


class _Builder(NamedTuple):
    """The parts of one network and what all of its layers share. A branch is a pair (features, mask)."""

    config: UNetConfig
    policy: keras.DTypePolicy
    seed: int

    def encoder(self, image, mask):
        """Branches from the image down: that of the image and of each level."""
        config = self.config
        branches = [self._masked("image", self._normalized("image", image), mask)]
        for k, (filters, kernel) in enumerate(zip(config.filters, config.kernels, strict=True), start=1):
            stage = f"encoder_{k}"
            x, m = self._conv(stage, branches[-1], filters, kernel, 2, k, use_bias=k == 1)
            if k > 1:
                x = self._batch_norm(stage)(x)
            x = layers.ReLU(dtype=self.policy, name=f"{stage}_relu")(x)
            branches.append(self._masked(stage, x, m) if k > 1 else (x, m))  # without BatchNorm holes are still 0
        return branches

    def decoder(self, branches, base):
        """Features of 3 channels at the image's size, from the encoder's branches and, if any, the interpolated one."""
        config, policy = self.config, self.policy
        *skips, (x, m) = branches
        views = skips[:1]  # of the image, at its full size
        if base is not None:
            filled, known = base
            views.append((self._normalized("interpolated", filled), known))
        for k in range(config.depth, 0, -1):
            stage = f"decoder_{k}"
            up = (
                DoubleSize(dtype=policy, name=f"{stage}_up")(x),
                DoubleSize(dtype="float32", name=f"{stage}_up_mask")(m),
            )
            filters = config.filters[k - 2] if k > 1 else config.refine or 3
            last = k == 1 and not config.refine
            beside = views if k == 1 else [skips[k - 1]]
            x, m = self._conv(stage, [up, *beside], filters, 3, 1, 2 * config.depth + 1 - k, use_bias=last)
            if not last:
                x = self._batch_norm(stage)(x)
                x = layers.LeakyReLU(LEAKY_SLOPE, dtype=policy, name=f"{stage}_leaky_relu")(x)
                x, m = self._masked(stage, x, m)
        if config.refine:
            x, _ = self._conv("refine", [(x, m), *views], 3, 3, 1, 2 * config.depth + 2, use_bias=True)
        return x

    def output(self, x, base):
        """The image in float32 from the decoder's features: the head if there is one, then the scale of the input."""
        config, policy = self.config, self.policy
        if base is not None:
            if config.normalizes:
                x = layers.Rescaling(list(config.std), dtype="float32", name="residual")(x)
            return layers.Add(dtype="float32", name="output")([base[0], x])
        if config.head == "sigmoid":
            x = layers.LeakyReLU(LEAKY_SLOPE, dtype=policy, name="head_leaky_relu")(x)
            glorot = keras.initializers.GlorotUniform(seed=_layer_seed(self.seed, 2 * config.depth + 1))
            x = layers.Conv2D(3, 1, kernel_initializer=glorot, dtype=policy, name="head_conv")(x)
            x = layers.Activation("sigmoid", dtype="float32", name="head_sigmoid")(x)
        if config.normalizes:
            return layers.Rescaling(list(config.std), list(config.mean), dtype="float32", name="output")(x)
        return layers.Activation("linear", dtype="float32", name="output")(x)

    def _normalized(self, name, x):
        config = self.config
        if not config.normalizes:
            return x
        scale = [1 / std for std in config.std]
        offset = [-mean / std for mean, std in zip(config.mean, config.std, strict=True)]
        return layers.Rescaling(scale, offset, dtype="float32", name=f"{name}_normalized")(x)

    def _conv(self, stage, branches, filters, kernel, strides, index, use_bias):
        initializer = keras.initializers.HeNormal(seed=_layer_seed(self.seed, index))
        if self.config.residual and stage == ("refine" if self.config.refine else "decoder_1"):
            initializer = "zeros"  # training begins with what is interpolated
        return PartialConv2D(
            filters,
            kernel,
            strides,
            use_bias=use_bias,
            kernel_initializer=initializer,
            inputs_masked=True,
            dtype=self.policy,
            name=f"{stage}_conv",
        )(branches)

    def _masked(self, stage, x, m):
        return ApplyMask(dtype=self.policy, name=f"{stage}_masked")((x, m)), m

    def _batch_norm(self, stage):
        epsilon = self.config.bn_epsilon
        return BatchNormalization(momentum=BN_MOMENTUM, epsilon=epsilon, dtype=self.policy, name=f"{stage}_bn")


def _layer_seed(seed, index):
    """A seed of its own for each layer; seed 0's second layer is not seed 1's first."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)
