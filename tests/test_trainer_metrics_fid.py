"""FID against pytorch-fid, SciPy's square root of a matrix and closed forms, with weights anyone can make again."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from scipy import linalg
from torch_files import write_pth

from trainer import storage
from trainer.errors import UserError
from trainer.metrics import fid
from trainer.metrics.fid import CLASSES, Inception, frechet_distance, load_inception

# What the network of pytorch-fid 0.3.0 with PyTorch 2.13 gave for `draw_weights` and `draw_images`: of each picture
# the first three features, and the mean and standard deviation of all 2,048.
EXPECTED = [
    [1.3414124250411987, 4.426009654998779, 1.9012738466262817, 3.656211160921444, 5.110381455877875],
    [1.379273533821106, 4.415126323699951, 1.9282793998718262, 3.62479979516813, 5.059222396780418],
]


def draw_weights() -> dict[str, np.ndarray]:
    """He's initialisation, and normalizations that change something."""
    rng, arrays = np.random.default_rng(3), {}
    for name, shape in fid.expected_shapes().items():
        if name.endswith("conv.weight"):
            arrays[name] = rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(("bn.weight", "running_var")):
            arrays[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            arrays[name] = rng.normal(0, 0.1, shape).astype(np.float32)
    return arrays


def draw_images() -> np.ndarray:
    return np.random.default_rng(7).random((2, 70, 81, 3), np.float32)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return draw_weights()


def test_features_are_those_of_pytorch_fid(weights):
    network, pictures = Inception(weights | {"fc.bias": np.zeros(CLASSES)}), draw_images()
    found = np.asarray(network(pictures))
    assert found.shape == (2, fid.FEATURES) and found.dtype == np.float32
    summary = np.column_stack([found[:, :3], found.mean(1, np.float64), found.std(1, dtype=np.float64)])
    np.testing.assert_allclose(summary, EXPECTED, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=r"FID: expected images \[B, H, W, 3\]. Received \(2, 70, 81, 1\)"):
        network(pictures[..., :1])


@pytest.mark.parametrize(("one", "other", "size"), [(40, 30, 6), (9, 14, 20), (12, 50, 20), (8, 8, 8)])
def test_distances_are_those_of_the_formula(one, other, size):
    rng = np.random.default_rng(one)
    x = rng.normal(size=(one, size)) @ rng.normal(size=(size, size)) + 3
    y = rng.normal(size=(other, size)) @ rng.normal(size=(size, size))
    covariances = [np.cov(features, rowvar=False) for features in (x, y)]
    # SciPy's root of a product without full rank is inaccurate; that of its eigenvalues is not.
    root = np.sqrt(np.maximum(linalg.eigvals(covariances[0] @ covariances[1]).real, 0)).sum()
    if min(one, other) > size:
        assert root == pytest.approx(np.trace(linalg.sqrtm(covariances[0] @ covariances[1])).real, rel=1e-10)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + sum(map(np.trace, covariances)) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-10)


def spread(scales) -> np.ndarray:
    """Features of mean 0 whose covariance is diagonal, with the squares of ``scales``."""
    count = 2 * len(scales)
    return np.concatenate([np.diag(scales), -np.diag(scales)]) * np.sqrt((count - 1) / 2)


def test_closed_forms():
    one, other, shift = np.array([1.0, 2.0, 0.0, 5.0]), np.array([1.0, 5.0, 3.0, 4.5]), np.array([1.0, 0.0, -2.0, 2.0])
    x, y = spread(one), spread(other)
    np.testing.assert_allclose(np.cov(x, rowvar=False), np.diag(one**2), atol=1e-12)
    assert frechet_distance(x, y + shift) == pytest.approx(9 + np.sum((one - other) ** 2), rel=1e-12)
    assert frechet_distance(x, x + shift) == pytest.approx(9, rel=1e-12)
    assert 0 <= frechet_distance(x, x[::-1]) < 1e-12
    assert frechet_distance(x.astype(np.float32), np.concatenate([x, x])) < 1  # N - 1 in the one, N - 0.5 in the other
    few = np.random.default_rng(0).normal(size=(3, 2048)).astype(np.float32)
    assert 0 <= frechet_distance(few, few) < 1e-9
    for pair in ((x, x[:1]), (x, x[:, :2]), (x[0], x[0])):
        with pytest.raises(ValueError, match=r"FID: expected two \[N, D\] of one D, N of 2 or more. Received"):
            frechet_distance(*pair)


def test_weights_come_from_their_file_alone(weights, tmp_path):
    arrays = weights | {"fc.bias": np.zeros(CLASSES, np.float32), "Mixed_7c.n.num_batches_tracked": np.int64(0)}
    np.savez(tmp_path / "w.npz", **arrays)
    write_pth(tmp_path / "w.pth", OrderedDict(arrays))
    expected = Inception(weights)(draw_images())
    for name in ("w.npz", "w.pth"):
        path = tmp_path / name
        np.testing.assert_array_equal(load_inception(str(path))(draw_images()), expected)
        with pytest.raises(storage.Corrupt, match="expected crc32c"):
            load_inception(str(path), storage.crc32c(b"other"))
        for data in (b"", b"PK no zip", path.read_bytes()[:1000]):
            path.write_bytes(data)
            with pytest.raises(UserError, match=f"{name}: expected (an .npz|a) file of (plain arrays|torch.save)"):
                load_inception(str(path))
    # Torchvision's network, of the same shapes up to its number of classes, is not the one of FID.
    np.savez(tmp_path / "w.npz", **{"fc.bias": np.zeros(1000, np.float32)})
    with pytest.raises(
        UserError, match=r"w.npz: FID: expected the 2015 network, with fc.bias \(1008,\). Received \(1000,\)"
    ):
        load_inception(str(tmp_path / "w.npz"))


def test_wrong_arrays_are_refused(weights):
    name = "Mixed_6c.branch7x7_2.conv.weight"
    for wrong in (
        {key: array for key, array in weights.items() if key != name},
        weights | {name: weights[name].transpose(0, 1, 3, 2)},
    ):
        with pytest.raises(ValueError, match=rf"FID: expected {name} \(160, 160, 1, 7\). Received"):
            Inception(wrong)
