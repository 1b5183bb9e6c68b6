"""Our network in RunInference: an element that fails takes no other with it."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from pipelines.evaluation.methods import fill_round
from pipelines.transforms import model_handler
from pipelines.transforms.model_handler import FillModelHandler, Pair
from trainer.errors import DeviceError, UserError
from trainer.inference import predict

MARK = 77  # first value of the image that the network below fails on


def refuse_marked(image, mask):
    """Stands for a network: mid-gray, or an error if the batch holds a marked image."""
    if np.any(np.rint(image[:, 0, 0, 0] * 255) == MARK):
        raise ValueError("out of memory")
    return tf.fill(image.shape, 0.5)


@pytest.mark.parametrize("marked", [[], [2], [0, 1], [0, 1, 2, 3]])
def test_an_element_that_fails_fails_alone(marked):
    diagonal = np.eye(4, dtype=np.uint8)
    batch = [Pair(np.full((4, 4, 3), i, np.uint8), diagonal) for i in range(4)]
    for i in marked:
        batch[i].image[0, 0] = MARK
    results = FillModelHandler(None, 4).run_inference(batch, predict.Model(refuse_marked, stride=2))
    assert len(results) == 4
    for i, result in enumerate(results):
        if i in marked:
            assert isinstance(result, ValueError)
        else:
            assert result.pixels.shape == (4, 4, 3), result
            assert np.all(result.pixels[diagonal == 1] == i) and np.all(result.pixels[diagonal == 0] == 128)


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_windows_and_seconds_are_told_and_batches_are_filled(batch_size):
    batch = [Pair(np.full((4, 4, 3), i, np.uint8), np.eye(4, dtype=np.uint8)) for i in range(3)]
    shapes = []

    def predict_gray(image, mask):
        shapes.append(image.shape[0])
        return tf.fill(image.shape, 0.5)

    model = predict.Model(predict_gray, stride=2, batch_size=batch_size)
    results = FillModelHandler(None, batch_size).run_inference(batch, model)
    assert [result.windows for result in results] == [1, 1, 1]
    assert all(result.seconds > 0 for result in results)
    assert shapes == {None: [3], 1: [1, 1, 1], 4: [4]}[batch_size]


def test_large_images_make_batches_alone():
    weigh = FillModelHandler(None, 8).weigh
    sizes = [(1, 1), (512, 512), (1024, 1024), (512, 513), (4000, 6000)]
    masks = [np.broadcast_to(np.uint8(1), size) for size in sizes]
    assert [weigh(Pair(mask, mask)) for mask in masks] == [1, 1, 4, 2, 16]


def test_a_missing_device_is_told_in_the_words_of_the_command(monkeypatch):
    def load(*_, **options):
        raise DeviceError(f"device {options['device']}: this machine has no GPU")

    monkeypatch.setattr(predict, "load_model", load)
    with pytest.raises(UserError, match="^--device gpu: this machine has no GPU"):
        FillModelHandler(None, None, device="gpu").load_model()


@pytest.mark.parametrize("fill", [FillModelHandler(None, 1).run_inference, fill_round], ids=["inpaint", "evaluate"])
def test_two_of_a_machines_many_threads_compute_at_a_time(fill, monkeypatch):
    events, go = queue.Queue(), threading.Event()
    bound = model_handler.one_of_few()

    class Told:
        """The same bound, which tells of a thread that has to wait."""

        def __enter__(self):
            if not bound.acquire(blocking=False):
                events.put("waits")
                bound.acquire()

        def __exit__(self, *_):
            bound.release()

    def predict_gray(image, mask):
        events.put("computes")
        go.wait()
        return tf.fill(image.shape, 0.5)

    monkeypatch.setattr(model_handler, "_COMPUTING", Told())
    pair = Pair(np.zeros((4, 4, 3), np.uint8), np.eye(4, dtype=np.uint8))
    with ThreadPoolExecutor(6) as pool:
        results = [pool.submit(fill, [pair], predict.Model(predict_gray, stride=2)) for _ in range(6)]
        try:
            first = sorted(events.get(timeout=600) for _ in range(6))
        finally:
            go.set()
        assert first == ["computes"] * 2 + ["waits"] * 4
        assert [len(result.result()) for result in results] == [1] * 6


def test_a_thread_whose_batch_fails_lets_the_others_compute():
    diagonal = np.eye(4, dtype=np.uint8)
    batch = [Pair(np.full((4, 4, 3), MARK, np.uint8), diagonal)] * 3
    for _ in range(3):
        results = FillModelHandler(None, 4).run_inference(batch, predict.Model(refuse_marked, stride=2))
        assert [type(result) for result in results] == [ValueError] * 3
