"""LPIPS against the package of its authors, with weights that anyone can make again."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from torch_files import write_pth

from trainer import storage
from trainer.errors import UserError
from trainer.metrics import lpips
from trainer.metrics.lpips import Lpips, load_lpips

# What lpips 0.1.4 with PyTorch 2.13 computed for `draw_weights` and `draw_images` (normalize=True).
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


def draw_images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    target = rng.random((3, 70, 81, 3), dtype=np.float32)
    noise = rng.normal(size=target.shape) * np.array([0.02, 0.1, 0.4])[:, None, None, None]
    return target, (target + noise).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("network", EXPECTED)
def test_distances_are_those_of_the_package(network):
    target, output = draw_images()
    measure = Lpips(draw_weights(network) | {"classifier.1.weight": np.zeros(3)})
    assert measure.network == network
    np.testing.assert_allclose(measure(output, target), EXPECTED[network], rtol=0, atol=1e-6)
    np.testing.assert_allclose(measure(output.astype("float64"), target), EXPECTED[network], rtol=0, atol=1e-6)
    assert np.all(np.asarray(measure(target, target)) == 0)


def test_weights_come_from_their_file_alone(tmp_path):
    np.savez(tmp_path / "w.npz", **draw_weights("alex"))
    write_pth(tmp_path / "w.pth", OrderedDict(draw_weights("alex")))
    target, output = draw_images()
    for name in ("w.npz", "w.pth"):
        path = tmp_path / name
        np.testing.assert_allclose(load_lpips(str(path))(output, target), EXPECTED["alex"], rtol=0, atol=1e-6)
        with pytest.raises(storage.Corrupt, match="expected crc32c"):
            load_lpips(str(path), storage.crc32c(b"other"))
        for data in (b"", b"PK no zip", path.read_bytes()[:1000]):
            path.write_bytes(data)
            with pytest.raises(UserError, match=f"{name}: expected (an .npz|a) file of (plain arrays|torch.save)"):
                load_lpips(str(path))
    np.savez(tmp_path / "w.npz", **{"features.0.bias": np.zeros(3)})
    with pytest.raises(UserError, match="w.npz: LPIPS: expected the arrays of one of"):
        load_lpips(str(tmp_path / "w.npz"))


def test_a_list_is_no_state_dict(tmp_path):
    write_pth(tmp_path / "w.pth", [np.zeros(3, "float32")])
    with pytest.raises(UserError, match="w.pth: expected a state dict, tensors by name"):
        load_lpips(str(tmp_path / "w.pth"))


def test_wrong_arrays_and_images_are_refused():
    arrays = draw_weights("alex")
    for wrong in (
        {name: array for name, array in arrays.items() if name != "lin3.model.1.weight"},
        arrays | {"features.3.weight": arrays["features.3.weight"].transpose(2, 3, 1, 0)},
    ):
        with pytest.raises(ValueError, match="LPIPS: expected the arrays of one of"):
            Lpips(wrong)
    measure, picture = Lpips(arrays), np.zeros((1, 40, 40, 3), "float32")
    for pair in ((picture[:, :31], picture[:, :31]), (picture, picture[:, 1:]), (picture[..., :1], picture[..., :1])):
        with pytest.raises(ValueError, match="LPIPS: expected two .* Received"):
            measure(*pair)
