"""FID, a distance of two sets of pictures (Heusel et al., NeurIPS 2017, arXiv 1706.08500, there equation 6).

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))

of the means and covariances of the pictures' features (`trainer.metrics.inception`). It is no mean over pictures, and
with few of them it is too large: fewer pictures than 2,048 features leave the covariances without full rank. So it
compares methods on the same pictures, and values of different counts or of other weights not at all.

The weights are not part of this project and are never downloaded: their file is given by address. It is an ``.npz``
with the arrays of the state dict that the package pytorch-fid uses, under their own names:

    state = torch.load("pt_inception-2015-12-05-6726825d.pth")
    numpy.savez("fid_inception.npz", **{name: tensor.cpu().numpy() for name, tensor in state.items()})

With it the values are those of pytorch-fid: pictures in [0, 1], resized to 299 x 299 bilinearly and without
antialiasing, then scaled to [-1, 1].
"""

from __future__ import annotations

import io
import zipfile

import numpy as np

from trainer import storage
from trainer.errors import UserError
from trainer.metrics.inception import Inception

CLASSES = 1008  # of the classifier of 2015; torchvision's network has arrays of the same shapes, but 1,000 classes


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The distance above of features float [N, D] and [M, D], each of two or more; 0 for equal ones.

    Of centred features A / sqrt(N - 1) and B / sqrt(M - 1) the last trace is the sum of the singular values of
    A B^T: the squares of those are the eigenvalues of C1 C2. No square root of a matrix is needed, and with few
    pictures no matrix of D x D.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ValueError(f"fid: expected two [N, D] of one D, N of 2 or more. Received {one.shape} and {other.shape}.")
    means = one.mean(axis=0), other.mean(axis=0)
    roots = [_root(features - mean) for features, mean in zip((one, other), means, strict=True)]
    traces = [float(np.sum(root * root)) for root in roots]
    common = float(np.sum(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False)))
    # Rounding alone can leave it below 0.
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2)) + sum(traces) - 2 * common)


def _root(centred: np.ndarray) -> np.ndarray:
    """R [min(N, D), D] with R^T R = the covariance of [N, D]."""
    scaled = centred / np.sqrt(len(centred) - 1)
    return np.linalg.qr(scaled, mode="r") if len(scaled) > scaled.shape[1] else scaled


def load_inception(address: str, crc32c: str | None = None) -> Inception:
    """Reads the weights' file; raises `UserError` if it is not one."""
    data = storage.read(address, crc32c)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
        if (found := getattr(arrays.get("fc.bias"), "shape", None)) != (CLASSES,):
            raise ValueError(f"fid: expected the 2015 network, with fc.bias ({CLASSES},). Received {found}.")
        return Inception(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{address} holds no weights for FID: {error}") from None
