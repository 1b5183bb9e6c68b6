"""The sum of gradients: packs by hand, and two real workers whose sums and graphs are looked at."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from trainer import presets
from trainer.config import ScalingConfig
from trainer.training.exchange import divide_into_packs


@pytest.mark.parametrize(
    ("sizes", "limit", "packs"),
    [
        ([], 10, []),
        ([4, 4, 4], 8, [[2, 1], [0]]),
        ([4, 4, 4], 100, [[2, 1, 0]]),
        ([4, 4, 4], 1, [[2], [1], [0]]),
        ([3, 50, 2, 5], 8, [[3, 2], [1], [0]]),
        ([8, 1], 8, [[1], [0]]),
        ([0, 8], 8, [[1, 0]]),
    ],
)
def test_packs_begin_with_the_last_tensor_and_keep_to_the_limit(sizes, limit, packs):
    assert divide_into_packs(sizes, limit) == packs


@pytest.mark.parametrize(
    ("device", "collective", "resolved"),
    [("cpu", "auto", "ring"), ("gpu", "auto", "nccl"), ("gpu", "ring", "ring"), ("cpu", "ring", "ring")],
)
def test_gpus_exchange_by_nccl_unless_told_otherwise(device, collective, resolved):
    assert ScalingConfig(device=device, collective=collective).resolved_collective == resolved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("scaling.collective=nccl", "expected ring or auto unless scaling.device=gpu. Received 'nccl'"),
        ("scaling.collective=gloo", "collective"),
        ("scaling.pack_mb=0", "pack_mb"),
        ("scaling.exchange_dtype=float16", "exchange_dtype"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        presets.override(presets.PRESETS["demo"], [change])


PROGRAM = """
import json, sys
import numpy as np
import tensorflow as tf
from trainer import presets
from trainer.training import exchange
from trainer.training.devices import make_strategy, prepare_devices
from trainer.training.state.train_state import TrainState
from trainer.training.step import make_train_step

rank, folder = int(sys.argv[1]), sys.argv[2]
prepare_devices("cpu", 1, 1)
strategy = make_strategy("cpu", 1, 2)
changes = ["unet.filters=4,8,8", "unet.kernels=5,3,3", "unet.image_size=32", "scaling.workers=2", "precision=float32"]
config = presets.override(presets.PRESETS["demo"], changes)
state = TrainState.build(config, strategy)


def sums(name, dtype, shapes):
    with strategy.scope():
        variables = [tf.Variable(np.zeros(shape, np.float32)) for shape in shapes]
    scaling = presets.override(config, ["scaling.pack_mb=0.0001", f"scaling.exchange_dtype={dtype}"]).scaling
    add = exchange.make_sum(strategy, scaling, variables)
    random = np.random.default_rng([rank, len(shapes)])
    values = random.normal(size=3).astype(np.float32)
    gradients = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    each = tf.function(lambda: add(tf.constant(values), [tf.constant(gradient) for gradient in gradients]))
    for _ in range(2):  # a step is run again and again
        found = strategy.run(each)
    np.savez(f"{folder}/{name}-{rank}", *values[None], *gradients)
    np.savez(f"{folder}/{name}-{rank}-sum", *found[0].numpy()[None], *[x.numpy() for x in found[1:]])


sums("float32", "float32", [(5, 5, 3, 4), (4,), (), (30,)])
sums("bfloat16", "bfloat16", [(7,), (5, 5, 3, 4)])


def ancestors(operation):
    found, left = set(), [operation]
    while left:
        for other in [*(tensor.op for tensor in left[-1].inputs), *left.pop().control_inputs]:
            if other.name not in found:
                found.add(other.name)
                left.append(other)
    return found


def waits(pack_mb):
    "Of each pack, in the order in which they are made: for how much of the backward pass it waits, in convolutions."
    scaling = presets.override(config, [f"scaling.pack_mb={pack_mb}"]).scaling
    step = make_train_step(strategy, state.model, state.optimizer, None, config.loss, scaling=scaling)
    batch = [tf.TensorSpec((2, 32, 32, channels)) for channels in (3, 1)]
    operations = step.get_concrete_function(*batch).graph.get_operations()
    types = {operation.name: operation.type for operation in operations}
    found = []
    for pack in operations:
        # BatchNorm's sums are of the strategy's own group of workers.
        if pack.type == "CollectiveReduceV2" and tf.get_static_value(pack.inputs[2]) == exchange._GROUP:
            found.append(sum(types[name] == "Conv2DBackpropInput" for name in ancestors(pack)))
    return found[1:]  # the first are the losses


told = {str(size): waits(size) for size in (0.002, 1000)}
if rank == 0:
    print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange")
    probes = [socket.socket() for _ in range(2)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]
    for probe in probes:
        probe.close()
    started = []
    for rank in range(2):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": rank}}
        command = [sys.executable, "-c", PROGRAM, str(rank), str(folder)]
        environment = os.environ | {"TF_CONFIG": json.dumps(task)}
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, error) in zip(started, said, strict=True):
        assert process.returncode == 0, error[-4000:]
    return folder, json.loads(said[0][0])


def load(folder, name):
    return [np.load(f"{folder}/{name}-{end}.npz") for end in ("0", "1", "0-sum", "1-sum")]


def round_to_bfloat16(x):
    """To the nearest, ties to even, by hand."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_packs_are_summed_exactly(worked):
    first, second, *sums = load(worked[0], "float32")
    assert len(first.files) == 5
    for name in first.files:
        for found in sums:
            np.testing.assert_array_equal(found[name], first[name] + second[name])


def test_bfloat16_rounds_each_gradient_and_their_sum_but_no_loss(worked):
    first, second, *sums = load(worked[0], "bfloat16")
    losses, *gradients = first.files
    for found in sums:
        np.testing.assert_array_equal(found[losses], first[losses] + second[losses])
        for name in gradients:
            expected = round_to_bfloat16(round_to_bfloat16(first[name]) + round_to_bfloat16(second[name]))
            np.testing.assert_array_equal(found[name], expected)
            assert not np.array_equal(expected, first[name] + second[name])


def test_a_pack_waits_for_its_own_gradients_and_not_for_the_end_of_the_backward_pass(worked):
    (whole,) = worked[1]["1000"]
    packs = worked[1]["0.002"]
    assert len(packs) >= 4 and packs == sorted(packs)
    assert packs[0] < packs[len(packs) // 2] < packs[-1] == whole
