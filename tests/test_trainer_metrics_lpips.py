"""LPIPS against the package of its authors, with weights that anyone can make again."""

from __future__ import annotations

import io

import numpy as np
import pytest

from trainer import storage
from trainer.errors import UserError
from trainer.metrics import lpips
from trainer.metrics.lpips import Lpips, load_lpips

# What lpips 0.1.4 with PyTorch 2.13 computed for `draw_weights` and `draw_pictures` (normalize=True).
EXPECTED = {
    "alex": [0.004935384728014469, 0.09231541305780411, 0.5423056483268738],
    "vgg": [0.005639414303004742, 0.0918007418513298, 0.45550215244293213],
}


def draw_weights(network: str) -> dict[str, np.ndarray]:
    """He's initialisation and small biases; positive weights of the layers, as the learned ones are."""
    rng, arrays = np.random.default_rng(3), {}
    for name, shape in lpips.expected_shapes(network).items():
        if name.startswith("lin"):
            arrays[name] = rng.random(shape, dtype=np.float32)
        else:
            scale = 0.1 if name.endswith("bias") else (2 / np.prod(shape[1:])) ** 0.5
            arrays[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return arrays


def draw_pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    target = rng.random((3, 70, 81, 3), dtype=np.float32)
    noise = rng.normal(size=target.shape) * np.array([0.02, 0.1, 0.4])[:, None, None, None]
    return target, (target + noise).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("network", EXPECTED)
def test_distances_are_those_of_the_package(network):
    target, output = draw_pictures()
    measure = Lpips(draw_weights(network) | {"classifier.1.weight": np.zeros(3)})
    assert measure.network == network
    np.testing.assert_allclose(measure(output, target), EXPECTED[network], rtol=0, atol=1e-6)
    np.testing.assert_allclose(measure(output.astype("float64"), target), EXPECTED[network], rtol=0, atol=1e-6)
    assert np.all(np.asarray(measure(target, target)) == 0)


def test_weights_come_from_their_file_alone(tmp_path):
    file = io.BytesIO()
    np.savez(file, **draw_weights("alex"))
    (tmp_path / "w.npz").write_bytes(file.getvalue())
    target, output = draw_pictures()
    found = load_lpips(str(tmp_path / "w.npz"))(output, target)
    np.testing.assert_allclose(found, EXPECTED["alex"], rtol=0, atol=1e-6)
    with pytest.raises(storage.Corrupt, match="expected crc32c"):
        load_lpips(str(tmp_path / "w.npz"), storage.crc32c(b"other"))
    for data in (b"", b"PK no zip", file.getvalue()[:1000]):
        (tmp_path / "w.npz").write_bytes(data)
        with pytest.raises(UserError, match="w.npz holds no weights of LPIPS"):
            load_lpips(str(tmp_path / "w.npz"))


def test_wrong_arrays_and_pictures_are_refused():
    arrays = draw_weights("alex")
    for wrong in (
        {name: array for name, array in arrays.items() if name != "lin3.model.1.weight"},
        arrays | {"features.3.weight": arrays["features.3.weight"].transpose(2, 3, 1, 0)},
    ):
        with pytest.raises(ValueError, match="lpips: expected the arrays of one of"):
            Lpips(wrong)
    measure, picture = Lpips(arrays), np.zeros((1, 40, 40, 3), "float32")
    for pair in ((picture[:, :31], picture[:, :31]), (picture, picture[:, 1:]), (picture[..., :1], picture[..., :1])):
        with pytest.raises(ValueError, match="lpips: expected two .* Received"):
            measure(*pair)
