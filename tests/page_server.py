"""A server of the page of `pconv try`, pictures for it, and the job that it is compared with."""

from __future__ import annotations

import asyncio
import contextlib
import io
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pipelines import inpaint
from trainer.inference import pins

MAX_PIXELS = 4_000_000


def photo(height: int, width: int, dtype=np.uint8) -> np.ndarray:
    """A picture [height, width, 3] with another color everywhere."""
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([rows / height, columns / width, (rows + columns) / (height + width)], axis=-1)
    return (rgb * np.iinfo(dtype).max).astype(dtype)


def turned_jpeg(height: int = 60, width: int = 90) -> bytes:
    """Stored ``height`` x ``width``, to be viewed turned to the right."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(height, width)).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def mask_of(height: int, width: int) -> bytes:
    """White with a black disc, of a canvas's four channels."""
    pixels = np.full((height, width, 4), 255, np.uint8)
    cv2.circle(pixels, (width // 2, height // 3), min(height, width) // 5, (0, 0, 0, 255), -1)
    return png(pixels)


@contextlib.contextmanager
def serving(run: str) -> Iterator[int]:
    """Port of a server of the run's page, in a thread of this process."""
    from pipelines.retouching import filling, server
    from pipelines.transforms.model_handler import FillModelHandler

    handler = FillModelHandler(pins.find_model(run), None)
    app = server.make_app(filling.Retoucher(handler, MAX_PIXELS), "gs://bucket/run <b>1</b>")
    ports, loop = queue.Queue(), asyncio.new_event_loop()
    served = loop.create_task(server.serve(app, "127.0.0.1", 0, ports.put))

    def work():
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(served)
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ports.get(timeout=300)
    finally:
        loop.call_soon_threadsafe(served.cancel)
        thread.join()


def run_job(run: str, files: dict[str, tuple[bytes, bytes]], folder: Path, *options: str) -> Path:
    for kind, part in (("images", 0), ("masks", 1)):
        (folder / kind).mkdir()
        for name, data in files.items():
            (folder / kind / (name if part == 0 else Path(name).with_suffix(".png"))).write_bytes(data[part])
    given = ["--images", str(folder / "images"), "--masks", str(folder / "masks"), "--output", str(folder / "out")]
    inpaint.main([*given, "--run", run, "--hole", "black", "--resize-masks", *options])
    return folder / "out"
