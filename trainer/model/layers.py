"""Keras layers of the network: partial convolution, masking, and batch normalization over replicas.

Partial convolution is section 3.1 of Liu et al., ECCV 2018 (arXiv 1804.07723). Every Keras backend works.

A *branch* is a pair (features [B, H, W, C], mask [B, H, W, 1]); the mask is 1 where the features
are valid and 0 in holes. All channels of a branch share its mask, so one-channel box sums give the
paper's sum(M) over all channels exactly.
"""

from __future__ import annotations

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="pconv")
class PartialConv2D(keras.layers.Layer):
    """2D convolution over the valid pixels only, and the mask of what it could fill.

    With X the window of the features, M that of the mask, and sum(1) = kh * kw * Cin (paper, equations 1 and 2):

        out          = W^T (X * M) * sum(1) / sum(M) + b   where sum(M) > 0, else 0
        updated_mask = 1                                   where sum(M) > 0, else 0

    Several branches act as if their features and their masks were concatenated along the channels, in
    the order given: sum(M) = C1 * box(mask1) + C2 * box(mask2) + ..., where box sums a mask over the window.
    Padding is explicit and counts as hole: `dilation_rate * (kernel_size - 1)` pixels in all, half of
    it on each side (an even kernel has the odd pixel at the bottom and the right), so the output has
    `ceil(size / strides)` pixels whatever the kernel.

    What the features hold under a hole, infinities and NaN included, changes no bit of the output and
    receives no gradient. Mask arithmetic runs in float32 under every dtype policy; no constant is added to
    sum(M). The convolution runs in the compute dtype and the ratio multiplies its result.

    Args:
        filters: number of output channels.
        kernel_size: size of the window, an integer or (height, width).
        strides: an integer or (vertical, horizontal).
        dilation_rate: an integer or (vertical, horizontal); above 1 only with strides of 1.
        use_bias: whether to add a bias (where sum(M) > 0 only).
        kernel_initializer: of the one kernel [kh, kw, sum of C, filters] over all branches.
        bias_initializer: of the bias [filters].
        kernel_regularizer: optional.
        bias_regularizer: optional.
        inputs_masked: promise that the features are already 0 in their holes; skips the pass that masks
            them. See `ApplyMask`.
        **kwargs: `name`, `dtype`, `trainable` of `keras.layers.Layer`.

    Call arguments:
        inputs: one branch (features, mask), or a list of branches.

    Input shape:
        features [B, H, W, C] of any float dtype, mask [B, H, W, 1] of {0, 1} of any dtype. H and W are
        the same in all branches.

    Output shape:
        features [B, H', W', filters], updated mask [B, H', W', 1] with H' = ceil(H / strides).

    Returns:
        The pair (features in the compute dtype, updated mask of {0, 1} in float32).

    Raises:
        ValueError: for arguments out of range, inputs that are not branches, masks of more than one
            channel and sizes that differ.

    Example:

    >>> x, mask = keras.random.uniform((2, 64, 64, 3)), ops.ones((2, 64, 64, 1))
    >>> y, updated = PartialConv2D(8, 7, strides=2)((x, mask))
    >>> z, _ = PartialConv2D(4, 3)([(y, updated), (y, updated)])
    >>> tuple(z.shape)
    (2, 32, 32, 4)

    Reference:

    - [Image Inpainting for Irregular Holes Using Partial Convolutions](https://arxiv.org/abs/1804.07723)
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        dilation_rate=1,
        use_bias=True,
        kernel_initializer="he_normal",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        inputs_masked=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.autocast = False  # or Keras would cast the masks, too, to the compute dtype
        self.filters = _positive("filters", filters)
        self.kernel_size = _two("kernel_size", kernel_size)
        self.strides = _two("strides", strides)
        self.dilation_rate = _two("dilation_rate", dilation_rate)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                "PartialConv2D: expected strides or dilation_rate to be 1. "
                f"Received strides={self.strides} and dilation_rate={self.dilation_rate}."
            )
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.inputs_masked = bool(inputs_masked)

    def build(self, input_shape):
        branches = _check(_branches(input_shape, _is_shape))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, sum(shape[-1] for shape, _ in branches), self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
            )

    def call(self, inputs):
        branches = _branches(inputs, lambda x: hasattr(x, "shape"))
        _check([(tuple(x.shape), tuple(m.shape)) for x, m in branches], channels=self.kernel.shape[-2])
        features, total = [], 0.0
        for x, mask in branches:
            x, mask = ops.cast(x, self.compute_dtype), ops.cast(mask, "float32")
            features.append(x if self.inputs_masked else _masked(x, mask))
            total = total + x.shape[-1] * self._box(mask)
        features = features[0] if len(features) == 1 else ops.concatenate(features, axis=-1)

        # float32 holds these integers exactly (kh * kw * Cin < 2**24); bfloat16 would not hold 257.
        # A float64 layer takes the ratio, too, in float64.
        total = ops.cast(total, "float64" if self.compute_dtype == "float64" else "float32")
        filled = total > 0
        window = self.kernel_size[0] * self.kernel_size[1] * self.kernel.shape[-2]
        ratio = ops.where(filled, window / ops.maximum(total, 1.0), 0.0)
        # float16 ends at 65504, which the ratio of a wide layer can exceed.
        dtype = "float32" if self.compute_dtype == "float16" else self.compute_dtype
        out = ops.cast(self._convolve(features, ops.cast(self.kernel, self.compute_dtype)), dtype)
        # A ratio of 0 also removes what a backend's Winograd rounding may leave in an empty window.
        out = out * ops.cast(ratio, dtype)
        if self.bias is not None:
            out = ops.where(filled, out + ops.cast(self.bias, dtype), 0)
        return ops.cast(out, self.compute_dtype), ops.cast(filled, "float32")

    def _box(self, mask):
        """Number of valid pixels in each window, [B, H', W', 1] float32."""
        # Rounding makes the count exact where a backend convolves by Winograd or FFT, and stops gradients.
        return ops.round(self._convolve(mask, ops.ones((*self.kernel_size, 1, 1), "float32")))

    def _convolve(self, x, kernel):
        if max(self.strides) == 1:  # 'same' is the padding of the docstring, without a padded copy
            return ops.conv(x, kernel, 1, "same", "channels_last", self.dilation_rate)
        totals = [k - 1 for k in self.kernel_size]  # strides are above 1, so dilation is 1
        padding = [(0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)]
        return ops.conv(ops.pad(x, padding), kernel, self.strides, "valid", "channels_last")

    def compute_output_shape(self, input_shape):
        (batch, height, width, _), _ = _check(_branches(input_shape, _is_shape))[0]
        sizes = [s if s is None else -(-s // stride) for s, stride in zip((height, width), self.strides, strict=True)]
        return (batch, *sizes, self.filters), (batch, *sizes, 1)

    def compute_output_spec(self, inputs):
        branches = _branches(inputs, lambda x: hasattr(x, "shape"))
        features, mask = self.compute_output_shape([(tuple(x.shape), tuple(m.shape)) for x, m in branches])
        return keras.KerasTensor(features, self.compute_dtype), keras.KerasTensor(mask, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "inputs_masked": self.inputs_masked,
        }


@keras.saving.register_keras_serializable(package="pconv")
class ApplyMask(keras.layers.Layer):
    """Sets features to 0 in their holes, whatever was there: masks a tensor once for all its consumers.

    Call arguments:
        inputs: one branch (features [B, H, W, C], mask [B, H, W, 1] of {0, 1}).

    Returns:
        Features [B, H, W, C] in the compute dtype.
    """

    def build(self, input_shape):
        _check(_branches(input_shape, _is_shape))

    def call(self, inputs):
        return _masked(*inputs)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[0])

    def get_config(self):  # Keras's automatic one cannot hold a DTypePolicy object
        return super().get_config()


@keras.saving.register_keras_serializable(package="pconv")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that can take its batch statistics over all replicas of a step.

    Statistics are computed in float32. With ``trainable = False``, or outside training, the moving ones are used.

    Keras's own ``synchronized=True`` sums three tensors per layer over the replicas, and backends other than
    TensorFlow refuse it; here mean and mean square travel as one [2, C] tensor. That alone made the demo's two workers
    of one core train 85.5 images/s instead of 77.5 (medians of 3 alternating runs).

    TensorFlow's own kernels compute it where they can (`tensorflow_kernels`).

    Attributes:
        mean_over_replicas: called with the [2, C] tensor of mean and mean square in training; returns its mean
            over all replicas, which must have batches of one size. None, the default: each replica keeps to its own.

    Input shape:
        [B, H, W, C], channels last.

    Output shape:
        Same as the input.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mean_over_replicas = None

    def call(self, inputs, training=None, mask=None):
        kernels = _kernels(inputs)
        if not (training and self.trainable):
            if not kernels:
                return super().call(inputs, training=False)
            moving = (ops.convert_to_tensor(x) for x in (self.moving_mean, self.moving_variance))
            return kernels.normalize(inputs, *self._affine(), *moving, self.epsilon)
        if kernels:
            found = kernels.normalize_batch(inputs, *self._affine(), self.epsilon, self.mean_over_replicas)
        else:
            found = self._by_passes(inputs)
        outputs, *statistics = found
        for moving, batch in zip((self.moving_mean, self.moving_variance), statistics, strict=True):
            moving.assign(moving * self.momentum + ops.cast(batch, moving.dtype) * (1.0 - self.momentum))
        return outputs

    def _affine(self):
        """gamma and beta, or what stands for them."""
        scale = self.gamma if self.scale else ops.ones_like(self.moving_mean)
        shift = self.beta if self.center else ops.zeros_like(self.moving_mean)
        return ops.convert_to_tensor(scale), ops.convert_to_tensor(shift)

    def _by_passes(self, inputs):
        x = ops.cast(inputs, "float64" if self.compute_dtype == "float64" else "float32")
        axes = tuple(range(len(x.shape) - 1))
        sums = ops.stack([ops.mean(x, axes), ops.mean(ops.square(x), axes)])
        sums = self.mean_over_replicas(sums) if self.mean_over_replicas else sums
        mean, variance = sums[0], ops.maximum(sums[1] - ops.square(sums[0]), 0.0)
        # gamma * (x - mean) / sqrt(variance + epsilon) + beta, as one multiplication and one addition per value.
        scale = ops.rsqrt(variance + self.epsilon)
        scale = scale * ops.cast(self.gamma, x.dtype) if self.scale else scale
        shift = (ops.cast(self.beta, x.dtype) if self.center else 0.0) - mean * scale
        return ops.cast(x * scale + shift, self.compute_dtype), mean, variance


@keras.saving.register_keras_serializable(package="pconv")
class DoubleSize(keras.layers.Layer):
    """Twice the height and width, by the nearest pixel: `keras.layers.UpSampling2D` in one pass in place of two.

    Input shape:
        [B, H, W, C].

    Output shape:
        [B, 2H, 2W, C].
    """

    def call(self, inputs, training=None):
        return _doubled_in_training(inputs) if training else _doubled(inputs)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, *(size if size is None else 2 * size for size in (height, width)), channels)

    def get_config(self):  # Keras's automatic one cannot hold a DTypePolicy object
        return super().get_config()


def _doubled(x):
    batch, height, width, channels = ops.shape(x)
    pixels = ops.reshape(x, (batch, height, 1, width, 1, channels))
    return ops.reshape(
        ops.broadcast_to(pixels, (batch, height, 2, width, 2, channels)), (batch, 2 * height, 2 * width, channels)
    )


@ops.custom_gradient
def _doubled_in_training(x):
    def gradient(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        # The sum of each 2 x 2 pixels. TensorFlow's own gradient of the broadcast takes ten times as long.
        return 4 * ops.average_pool(upstream, 2, 2, "valid", "channels_last")

    return _doubled(x), gradient


def _kernels(x):
    """What normalizes x by TensorFlow's kernels, or None."""
    if keras.config.backend() != "tensorflow":
        return None
    from trainer.model import tensorflow_kernels  # TensorFlow need not be there

    return tensorflow_kernels if tensorflow_kernels.can_normalize(x) else None


def _masked(x, mask):
    # `where`, not a product: 0 * NaN is NaN.
    return ops.where(ops.cast(mask, "float32") > 0.5, x, 0)


def _branches(structure, is_leaf):
    """One pair or a list of pairs as a list of pairs of leaves (tensors or shapes)."""
    nested = isinstance(structure, (list, tuple)) and len(structure) > 0
    branches = [structure] if nested and is_leaf(structure[0]) else structure
    if not nested or not all(
        isinstance(branch, (list, tuple)) and len(branch) == 2 and all(is_leaf(leaf) for leaf in branch)
        for branch in branches
    ):
        raise ValueError(f"Branches: expected a pair (features, mask) or a list of such pairs. Received {structure!r}.")
    return [tuple(branch) for branch in branches]


def _is_shape(structure):
    return isinstance(structure, (list, tuple)) and all(size is None or isinstance(size, int) for size in structure)


def _check(shapes, channels=None):
    """Refuses shapes that do not fit together; a size of None fits any."""
    sizes = [size for branch in shapes for size in branch]
    fits = all(len(size) == 4 for size in sizes)
    fits = fits and all(x[3] is not None and mask[3] == 1 for x, mask in shapes)
    fits = fits and all(len({size[axis] for size in sizes} - {None}) <= 1 for axis in (1, 2))
    fits = fits and channels in (None, sum(x[3] for x, _ in shapes))
    if not fits:
        total = "C" if channels is None else f"C (adding up to {channels})"
        raise ValueError(
            f"Branches: expected features [B, H, W, {total}] and masks [B, H, W, 1] of one height and width. "
            f"Received shapes {shapes}."
        )
    return shapes


def _positive(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"PartialConv2D: expected {name} to be a positive integer. Received {name}={value!r}.")
    return value


def _two(name, value):
    values = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"PartialConv2D: expected {name} to be one or two positive integers. Received {value!r}.")
    return tuple(_positive(name, v) for v in values)
