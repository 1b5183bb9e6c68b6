"""Pictures and mask files for the inpainting job, and what it leaves behind."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from trainer import storage
from trainer.images.pictures import Picture, encode
from trainer.inference import predict


def noise(height: int, width: int, channels: int, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


def block(height: int, width: int) -> np.ndarray:
    """Mask of one hole, uint8 [height, width] of {0, 1}."""
    mask = np.ones((height, width), np.uint8)
    mask[5:12, 7:19] = 0
    return mask


def save(address: str, pixels: np.ndarray, kind: str = "png") -> None:
    storage.create(address, encode(Picture(pixels), kind))


def save_mask(address: str, mask: np.ndarray) -> None:
    save(address, mask[..., None] * np.uint8(255))


def load(address: str) -> np.ndarray:
    found = np.asarray(Image.open(io.BytesIO(storage.read(address))))
    return found[..., None] if found.ndim == 2 else found


def counts(folder: str) -> dict[str, int]:
    return json.loads(storage.read(f"{folder}/manifest.json"))["counts"]


def errors(folder: str) -> list[str]:
    return [json.loads(line)["error"] for line in storage.read(f"{folder}/rejects.jsonl").splitlines()]


def model_of(run: str, which) -> predict.Model:
    return predict.load_model(predict.find_model(run, which))
