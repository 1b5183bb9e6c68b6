"""The cost of masks: time of partial convolutions over that of plain ones of the same shapes.

    make bench                                            # or: python tests/benchmarks/network.py layers float32
    ROUNDS=15 python tests/benchmarks/network.py step     # steadier medians

`layers`: each layer of the paper's network at 256 x 256, batch 4, forward and backward; beside it the textbook
implementation, a convolution of ones over a mask with as many channels as the features. `step`: the whole training step
(losses, Adam) at 256 x 256, batch 4, over the same UNet with plain convolutions. `inference`: 512 x 512, batch 1.
"""

import sys

from _timing import SMALL, take_turns

from trainer.command import quiet_imports

with quiet_imports():
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers, ops

    from trainer.config import LossConfig, UNetConfig
    from trainer.model.layers import BatchNormalization, PartialConv2D
    from trainer.model.losses import needs_features
    from trainer.model.unet import BN_MOMENTUM, LEAKY_SLOPE, build_unet
    from trainer.model.vgg import build_features
    from trainer.training.step import make_train_step

tf.get_logger().setLevel("ERROR")  # it warns of retracing, once per layer
PRECISIONS = ("float32", "mixed_bfloat16")
BATCH = 1 if SMALL else 4
CONFIG = UNetConfig(image_size=32, filters=(4, 8), kernels=(3, 3)) if SMALL else UNetConfig(image_size=256)
SIZE = CONFIG.image_size
PIXEL_LOSSES = LossConfig(perceptual=0, style_output=0, style_composite=0)


def build_plain_unet(config, dtype, height, width):
    """The same UNet with keras.layers.Conv2D; it ignores its mask input."""
    image, mask = keras.Input((height, width, 3)), keras.Input((height, width, 1))
    norm = {"momentum": BN_MOMENTUM, "epsilon": CONFIG.bn_epsilon, "synchronized": True, "dtype": dtype}
    x, levels = image, [image]
    for k, (filters, kernel) in enumerate(zip(config.filters, config.kernels, strict=True), start=1):
        x = layers.Conv2D(filters, kernel, 2, "same", use_bias=k == 1, dtype=dtype)(x)
        x = BatchNormalization(**norm)(x) if k > 1 else x
        levels.append(x := layers.ReLU(dtype=dtype)(x))
    levels.pop()
    for k in range(config.depth, 0, -1):
        x = layers.Concatenate(dtype=dtype)([layers.UpSampling2D(2, dtype=dtype)(x), levels.pop()])
        x = layers.Conv2D(config.filters[k - 2] if k > 1 else 3, 3, 1, "same", use_bias=k == 1, dtype=dtype)(x)
        if k > 1:
            x = layers.LeakyReLU(LEAKY_SLOPE, dtype=dtype)(BatchNormalization(**norm)(x))
    return keras.Model([image, mask], layers.Activation("linear", dtype="float32")(x))


class TextbookPartialConv(keras.layers.Layer):
    """Mask with the channels of the features, convolved with ones at full cost."""

    def __init__(self, filters, kernel, strides, dtype):
        super().__init__(dtype=dtype)
        self.autocast = False
        self.filters, self.size, self.strides = filters, kernel, strides

    def build(self, features_shape):
        self.kernel = self.add_weight(shape=(self.size, self.size, features_shape[-1], self.filters))

    def call(self, features, holes):
        x, mask = (ops.cast(tensor, self.compute_dtype) for tensor in (features, holes))
        kernel = ops.cast(self.kernel, self.compute_dtype)
        total = ops.conv(mask, ops.ones_like(kernel), self.strides, "same")
        ratio = ops.cast(np.prod(kernel.shape[:3]), total.dtype) / ops.maximum(total, 1)
        return ops.where(total > 0, ops.conv(x * mask, kernel, self.strides, "same") * ratio, 0)


def layer_shapes():
    """(name, size of the input, channels of each branch, filters, kernel, strides) of the paper's 16 layers."""
    size, channels, shapes = CONFIG.image_size, 3, []
    inputs = []
    for k, (filters, kernel) in enumerate(zip(CONFIG.filters, CONFIG.kernels, strict=True), start=1):
        inputs.append(channels)
        shapes.append((f"PConv{k}", size, (channels,), filters, kernel, 2))
        size, channels = size // 2, filters
    for k, skip in zip(range(CONFIG.depth + 1, 2 * CONFIG.depth + 1), reversed(inputs), strict=True):
        size, filters = size * 2, skip
        shapes.append((f"PConv{k}", size, (channels, skip), filters, 3, 1))
        channels = filters
    return shapes


def bench_layers(precision):
    print(f"\nlayers, {precision}, batch {BATCH}, forward and backward, ms (ratio to plain)")
    print(f"{'':8}{'input':>18}{'plain':>9}{'partial':>9}{'':7}{'textbook':>10}")
    rng, sums = np.random.default_rng(0), np.zeros(3)
    for name, size, channels, filters, kernel, strides in layer_shapes():
        dtype = keras.dtype_policies.get(precision)
        branches = [tf.Variable(rng.normal(size=(BATCH, size, size, c)), dtype=dtype.compute_dtype) for c in channels]
        masks = [tf.constant(rng.random((BATCH, size, size, 1)) > 0.3, tf.float32) for _ in channels]
        full = tf.concat([tf.repeat(m, c, -1) for m, c in zip(masks, channels, strict=True)], -1)
        plain = layers.Conv2D(filters, kernel, strides, "same", dtype=dtype)
        partial = PartialConv2D(filters, kernel, strides, dtype=dtype)
        textbook = TextbookPartialConv(filters, kernel, strides, dtype)

        def compile_step(forward, layer, inputs=branches):
            @tf.function
            def step():
                with tf.GradientTape() as tape:
                    out = forward()
                    loss = tf.reduce_mean(tf.cast(out, tf.float32))
                # The output is returned, or the graph optimizer would drop the forward pass.
                return out, tape.gradient(loss, [*layer.trainable_variables, *inputs])

            return lambda: [tensor.numpy() for tensor in step()[1][:1]]

        variants = {
            "plain": compile_step(lambda f=plain, b=branches: f(tf.concat(b, -1)), plain),
            "partial": compile_step(lambda f=partial, b=branches, m=masks: f(list(zip(b, m, strict=True)))[0], partial),
            "textbook": compile_step(lambda f=textbook, b=branches, m=full: f(tf.concat(b, -1), m), textbook),
        }
        ms = np.array([1000 * s for s in take_turns(variants).values()])
        sums += ms
        print_layer(name, f"{size}x{size}x{'+'.join(map(str, channels))}", *ms)
    print_layer("sum", "", *sums)


def print_layer(name, shape, plain, partial, textbook):
    ratios = [f"({other / plain:.2f})" for other in (partial, textbook)]
    print(f"{name:8}{shape:>18}{plain:9.1f}{partial:9.1f} {ratios[0]}{textbook:9.1f} {ratios[1]}", flush=True)


def examples(batch, size):
    rng = np.random.default_rng(0)
    target = tf.constant(rng.random((batch, size, size, 3)), tf.float32)
    return target, tf.constant(rng.random((batch, size, size, 1)) > 0.3, tf.float32)


def print_ratio(what, precision, seconds, images):
    partial, plain = seconds["partial"], seconds["plain"]
    print(
        f"{what:18}{precision:16}plain {1000 * plain:8.1f} ms {images / plain:6.2f} images/s   "
        f"partial {1000 * partial:8.1f} ms {images / partial:6.2f} images/s   ratio {partial / plain:.3f}",
        flush=True,
    )


def bench_step(precision):
    target, mask = examples(BATCH, SIZE)
    for what, losses in (("step", PIXEL_LOSSES), ("step with VGG", LossConfig())):
        variants = {}
        for name, build in (("plain", build_plain_unet), ("partial", build_unet)):
            model = build(CONFIG, precision, height=SIZE, width=SIZE)
            optimizer = keras.optimizers.Adam(2e-4)
            optimizer.build(model.trainable_variables)
            perceptual = build_features(dtype=precision) if needs_features(losses) else None
            step = make_train_step(tf.distribute.get_strategy(), model, optimizer, perceptual, losses)
            variants[name] = lambda step=step: float(step(target, mask).terms["total"])
        print_ratio(what, precision, take_turns(variants), BATCH)


def bench_inference(precision):
    target, mask = examples(1, 2 * SIZE)
    variants = {}
    for name, build in (("plain", build_plain_unet), ("partial", build_unet)):
        model = build(CONFIG, precision, height=2 * SIZE, width=2 * SIZE)
        predict = tf.function(lambda image, mask, model=model: model([image, mask], training=False))
        variants[name] = lambda predict=predict: predict(target, mask).numpy()
    print_ratio("inference", precision, take_turns(variants), 1)


BENCHMARKS = {"layers": bench_layers, "step": bench_step, "inference": bench_inference}

if __name__ == "__main__":
    chosen = [name for name in sys.argv[1:] if name in BENCHMARKS] or BENCHMARKS
    precisions = [name for name in sys.argv[1:] if name in PRECISIONS] or PRECISIONS
    for benchmark in chosen:
        for policy in precisions:
            BENCHMARKS[benchmark](policy)
