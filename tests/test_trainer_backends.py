"""Layer, network, features, losses and metrics give the same numbers on TensorFlow and on JAX."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
JAX = Path(sys.prefix, "jax")  # a folder of its own: see the Makefile
PROGRAM = """
import sys
import keras
import numpy as np
from keras import ops
from trainer.config import LossConfig, UNetConfig
from trainer.metrics import image_quality
from trainer.model import losses
from trainer.model.layers import PartialConv2D
from trainer.model.unet import build_unet
from trainer.model.vgg import build_features

assert keras.backend.backend() == sys.argv[1], keras.backend.backend()
rng = np.random.default_rng(0)
image, target = rng.random((2, 2, 32, 48, 3)).astype("float32")
mask = (rng.random((2, 32, 48, 1)) > 0.4).astype("float32")
mask[0, :30, :40] = 0
results = {}

def fill(model):
    for variable in model.variables:
        value = rng.normal(size=variable.shape) * 0.2
        variable.assign(np.abs(value) + 0.5 if variable.name == "moving_variance" else value)
    return model

for i, options in enumerate([dict(strides=2), dict(dilation_rate=2), dict(kernel_size=(5, 4), use_bias=False)]):
    layer = PartialConv2D(**{"filters": 4, "kernel_size": 3, **options})
    branches = [(image, mask), (target, 1 - mask[:, ::-1])]
    layer(branches)
    fill(layer)
    results[f"layer {i}"], results[f"mask {i}"] = layer(branches)

small = dict(image_size=32, filters=(8, 16, 16), kernels=(7, 5, 3))
other = dict(bn_epsilon=1e-3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), head="sigmoid")
for name, config in {"unet": UNetConfig(**small), "other unet": UNetConfig(**small, **other)}.items():
    results[name] = fill(build_unet(config))([image, mask])
    results[f"{name} of garbage"] = build_unet(config)([np.where(mask == 1, image, np.nan), mask]) * 0
output = ops.convert_to_tensor(results["unet"])

features = build_features()
results |= {f"pool{i}": x for i, x in enumerate(features(image), start=1)}
results["total"], terms = losses.total_loss(output, target, mask, features, LossConfig())
results |= terms
results["psnr"] = image_quality.psnr(image, target)
results["ssim"] = image_quality.ssim(image, target)
np.savez(sys.argv[2], **{name: ops.convert_to_numpy(value) for name, value in results.items()})
"""


def run(backend, path):
    places = [ROOT, JAX] if backend == "jax" else [ROOT]
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment = {**os.environ, **hidden, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, "-c", PROGRAM, backend, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(np.load(path))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not JAX.is_dir():
        pytest.skip("jax is not here: make test brings it")
    folder, backends = tmp_path_factory.mktemp("backends"), ("tensorflow", "jax")
    with ThreadPoolExecutor() as pool:  # a process has one backend
        return dict(zip(backends, pool.map(lambda name: run(name, folder / f"{name}.npz"), backends), strict=True))


@pytest.mark.slow
def test_jax_agrees_with_tensorflow(results):
    expected, received = results["tensorflow"], results["jax"]
    assert expected.keys() == received.keys() and len(expected) == 22
    for name, array in expected.items():
        assert received[name].shape == array.shape, name
        assert np.isfinite(array).all(), name
        assert np.abs(received[name] - array).max() <= 1e-5 * np.abs(array).max(), name
    assert 0 < expected["mask 0"].mean() < 1 and expected["mask 0"].tobytes() == received["mask 0"].tobytes()
