"""Conversion of networks trained by other implementations into variables of this one.

Both compute the paper's network with a different normalization of the partial convolution:

    ours         out = W (X * M) * kh kw C / sum(M) + b
    PConv-Keras  out = W (X * M) * kh kw   / sum(M) + b    so W = theirs / C
    naoto0804    out = W (X * M)           / sum(M) + b    so W = theirs / (kh kw C)

Three differences are folded into the weights: the normalization; the order of the decoder's branches (input channels
of its kernels); a bias before BatchNorm (its moving mean). The others are expressed by the network's config.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from pydantic import ValidationError

from trainer import presets
from trainer.config import UNetConfig
from trainer.errors import UserError
from trainer.model.unet import LEAKY_SLOPE

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KERAS_2_BN_EPSILON = 1e-3


@dataclass(frozen=True)
class Imported:
    """A network for `build_unet` that computes what the imported one did.

    Attributes:
        config: for `build_unet`.
        variables: arrays by variable path.
        notes: where it computes something else, one sentence each.
    """

    config: UNetConfig
    variables: dict[str, np.ndarray]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Stage:
    """A partial convolution: kernel [kh, kw, in, out], bias [out], and the four arrays of its BatchNorm, if any."""

    kernel: np.ndarray
    bias: np.ndarray
    norm: tuple[np.ndarray, ...] | None = None  # gamma, beta, moving mean, moving variance

    def __post_init__(self):
        vectors = [self.bias, *(self.norm or ())]
        if self.kernel.ndim != 4 or any(vector.shape != self.kernel.shape[3:] for vector in vectors):
            shapes = [array.shape for array in (self.kernel, *vectors)]
            raise UserError(f"expected a kernel [kh, kw, in, out] and vectors [out]. Received shapes {shapes}")


def from_pconv_keras(layers: dict[str, dict[str, np.ndarray]]) -> Imported:
    """Imports a network of MathiasGruber/PConv-Keras (libs/pconv_model.py), as it predicts with train_bn=False.

    Its layers in order are the encoder's and the decoder's PConv2D (`img_kernel`, `bias`), all but the first and the
    last with BatchNormalization, and a 1x1 Conv2D with a sigmoid after the last LeakyReLU. The decoder
    concatenates the encoder's branch first.

    Args:
        layers: of its weights file, as `weight_files.read_keras_h5` returns them.

    Raises:
        UserError: the layers are not PConv-Keras's.
    """
    convs, norms, heads = (
        [dict(layer) for layer in layers.values() if key in layer] for key in ("img_kernel", "gamma", "kernel")
    )
    depth = len(convs) // 2
    if not convs or (len(convs), len(norms), len(heads)) != (2 * depth, 2 * depth - 2, 1):
        raise UserError(
            "expected 2n PConv2D layers, 2n - 2 of BatchNormalization and one Conv2D, as PConv-Keras has them. "
            f"Received {len(convs)}, {len(norms)} and {len(heads)}"
        )
    stages = []
    for i, weights in enumerate(convs):
        norm = None
        if 0 < i < len(convs) - 1:
            norm = tuple(_take(norms[i - 1], key) for key in ("gamma", "beta", "moving_mean", "moving_variance"))
        stages.append(_Stage(_take(weights, "img_kernel"), _take(weights, "bias"), norm))
    stages = [replace(stage, kernel=stage.kernel / stage.kernel.shape[2]) for stage in stages]
    encoder, decoder = stages[:depth], stages[depth:]
    skips = [encoder[depth - 2 - i].kernel.shape[3] for i in range(depth - 1)] + [3]  # the decoder's, from below
    for i, skip in enumerate(skips):
        kernel = decoder[i].kernel
        decoder[i] = replace(decoder[i], kernel=np.concatenate([kernel[:, :, skip:], kernel[:, :, :skip]], axis=2))

    kernel, bias = _take(heads[0], "kernel"), _take(heads[0], "bias")
    if (kernel.shape, bias.shape, decoder[-1].bias.shape) != ((1, 1, 3, 3), (3,), (3,)):
        raise UserError(f"expected a 1x1 convolution of 3 channels at the end. Received a kernel {kernel.shape}")
    left = np.where(decoder[-1].bias > 0, decoder[-1].bias, LEAKY_SLOPE * decoder[-1].bias)
    theirs, ours = _sigmoid(left @ kernel[0, 0] + bias), _sigmoid(bias)
    notes = (
        "where no valid pixel reaches, PConv-Keras leaves a bias and paints RGB "
        f"({', '.join(f'{v:.3f}' for v in theirs)}); this network paints ({', '.join(f'{v:.3f}' for v in ours)}), "
        f"up to {np.abs(theirs - ours).max():.3f} away",
        "PConv-Keras with train_bn=True normalizes its encoder by the statistics of the batch even when it predicts; "
        "this network uses the moving ones, as PConv-Keras does with train_bn=False",
    )
    variables = {**_variables(encoder, decoder), "head_conv/kernel": kernel, "head_conv/bias": bias}
    return Imported(_config(encoder, 512, bn_epsilon=KERAS_2_BN_EPSILON, head="sigmoid"), variables, notes)


def from_naoto0804(state: dict[str, np.ndarray]) -> Imported:
    """Imports a network of naoto0804/pytorch-inpainting-with-partial-conv (net.py).

    Its stages enc_1 to enc_n and dec_n to dec_1 have `conv.input_conv` (with a bias in dec_1 only), `conv.mask_conv`
    of ones and, except enc_1 and dec_1, `bn`. Its images are normalized by ImageNet's mean and standard deviation.

    Args:
        state: the state dict, "model" in its checkpoints.

    Raises:
        UserError: the arrays are not those of that network.
    """
    state = dict(state)
    depth = sum(re.fullmatch(r"enc_\d+\.conv\.input_conv\.weight", key) is not None for key in state)

    def stage(name: str, has_norm: bool) -> _Stage:
        weight = _take(state, f"{name}.conv.input_conv.weight")  # [out, in, kh, kw]
        if weight.ndim != 4 or not (_take(state, f"{name}.conv.mask_conv.weight") == 1).all():
            raise UserError(f"expected {name} to have a kernel of four axes and a mask kernel of ones. Received others")
        bias = state.pop(f"{name}.conv.input_conv.bias", np.zeros(len(weight), "float32"))
        state.pop(f"{name}.bn.num_batches_tracked", None)
        keys = ("weight", "bias", "running_mean", "running_var")
        norm = tuple(_take(state, f"{name}.bn.{key}") for key in keys) if has_norm else None
        return _Stage(weight.T.swapaxes(0, 1) / weight[0].size, bias, norm)

    encoder = [stage(f"enc_{k}", has_norm=k > 1) for k in range(1, max(depth, 1) + 1)]
    decoder = [stage(f"dec_{k}", has_norm=k > 1) for k in range(depth, 0, -1)]
    if state:
        raise UserError(f"expected the arrays of naoto0804's network. Received also {sorted(state)[0]}")
    config = _config(encoder, 256, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Imported(config, _variables(encoder, decoder), ())


def _take(arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    if key not in arrays:
        raise UserError(f"expected an array {key}. Received {sorted(arrays)[:8]}")
    return arrays.pop(key)


def _config(encoder: list[_Stage], image_size: int, **options) -> UNetConfig:
    """Config of a network; `image_size` is that of its training, or the smallest that the depth allows."""
    shapes = [stage.kernel.shape for stage in encoder]
    try:
        return UNetConfig(
            image_size=max(image_size, 2 ** len(encoder)),
            filters=tuple(shape[3] for shape in shapes),
            kernels=tuple(shape[0] for shape in shapes),
            **options,
        )
    except ValidationError as error:
        raise UserError(f"a network of this shape cannot be built: {presets.explain(error)}") from None


def _variables(encoder: list[_Stage], decoder: list[_Stage]) -> dict[str, np.ndarray]:
    """Arrays by variable path; `decoder` is in the order of computation, from the deepest level up."""
    stages = {f"encoder_{k}": stage for k, stage in enumerate(encoder, start=1)}
    stages |= {f"decoder_{len(decoder) - i}": stage for i, stage in enumerate(decoder)}
    arrays = {}
    for name, stage in stages.items():
        arrays[f"{name}_conv/kernel"] = stage.kernel
        if stage.norm is None:
            arrays[f"{name}_conv/bias"] = stage.bias
        else:
            gamma, beta, mean, variance = stage.norm
            values = {"gamma": gamma, "beta": beta, "moving_mean": mean - stage.bias, "moving_variance": variance}
            arrays |= {f"{name}_bn/{key}": value for key, value in values.items()}
    return {path: array.astype("float32") for path, array in arrays.items()}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype("float64")))
