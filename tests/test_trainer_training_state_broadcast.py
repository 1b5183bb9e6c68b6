"""Two hosts continue a run: worker 0 reads its checkpoint from the store, worker 1 gets it from worker 0.

The hosts are network namespaces where root allows it, else processes that share an address. Each reaches the store
through a proxy of its own, which counts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import Proxy

from samples import write_noise
from trainer import checkpoints

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import dataclasses, json, sys
import numpy as np
from trainer import presets
from trainer.checkpoints import Checkpoint, Pin
from trainer.errors import UserError
from trainer.training import loop
from trainer.training.devices import make_strategy, prepare_devices
from trainer.training.state import broadcast
from trainer.training.state.train_state import TrainState

folder, run, worker, *settings = sys.argv[1:]
worker, told = int(worker), []
prepare_devices("cpu", 1, 1)
strategy = make_strategy("cpu", 1, 2)
loop.make_strategy = lambda *_: strategy  # a process can have one
if "alone" in settings:
    settings.remove("alone")
    broadcast._WORDS = 1000  # many pieces
    random = np.random.default_rng(0)
    arrays = {"float": random.normal(size=(31, 50)).astype(np.float32), "empty": np.zeros((0, 3)), "n": np.int64(-7),
              "half": np.float16([1, -0.0, np.nan]), "flags": np.array([True, False, True]), "x": random.normal(size=9)}
    arrays["float"].view(np.uint32)[0, :3] = 0x7FC12345, 0x80000000, 0xFFFFFFFF  # NaN of a certain kind, -0, another
    made = Checkpoint(pin=Pin(address="gs://b/1", crc32c="AAAAAA=="), state={"step": 3, "loss_scale": [1.0, 2.0]},
                      parts=("model", "optimizer", "ema"), variables={"model": arrays, "optimizer": {}},
                      config=presets.PRESETS["demo"])
    def load():
        told.append("loaded")
        return made
    found = broadcast.load_on_first(load, worker, strategy)
    for part in made.variables:
        for name, array in made.variables[part].items():
            other = found.variables[part][name]
            assert (other.dtype, other.shape, other.tobytes()) == (array.dtype, array.shape, array.tobytes()), name
    same = {"variables": {}}
    assert dataclasses.replace(found, **same) == dataclasses.replace(made, **same)
    assert found.variables.keys() == made.variables.keys()
    assert broadcast.load_on_first(lambda: None, worker, strategy) is None
    for error in (UserError("gs://b/1 is corrupt"), OSError("no answer")):
        def fail():
            raise error
        try:
            broadcast.load_on_first(fail, worker, strategy)
        except Exception as raised:
            told.append(f"{type(raised).__name__}: {raised}")
restored = TrainState.restore
def restore(self, *args):
    restored(self, *args)
    told.append(self.step)
    for part, read in self.readers().items():
        np.savez(f"{folder}/restored-{part}-{worker}.npz", **read())
TrainState.restore = restore
config = presets.override(presets.PRESETS["demo"], ["scaling.workers=2", *settings])
loop.train(config, f"{folder}/images", f"{folder}/masks", run, worker=worker, workers=2, report=lambda event: None)
print(json.dumps(told))
"""
SMALL = ["unet.image_size=32", "unet.filters=4,8,8", "unet.kernels=5,3,3", "precision=float32", "global_batch_size=4"]
SMALL += ["ema_decay=0.9", "validation.every=0", "finetune.steps=0"]


class Hosts:
    """Addresses for two workers and for servers of this machine that they can reach."""

    def __init__(self, folder: Path):
        spec = importlib.util.spec_from_file_location("hosts", ROOT / "infra/local/hosts.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        apart = os.geteuid() == 0 and shutil.which("ip") is not None
        bridge, prefix = (f"pb{os.getpid() % 10**8:08x}", module.choose_prefix()) if apart else (None, "")
        self._hosts = module.Hosts(str(folder), bridge, prefix)
        self.gateway = f"{prefix}1" if apart else "127.0.0.1"
        self.on, self.remove = self._hosts.on, self._hosts.remove
        self._hosts.make_bridge()
        for name in ("0", "1"):
            self._hosts.add(name)

    def cluster(self) -> list[str]:
        """Where the workers' servers listen."""
        found = []
        for name in ("0", "1"):
            with socket.socket() as probe:  # free in this namespace, and in a new one anyway
                probe.bind(("127.0.0.1", 0))
                found.append(f"{self._hosts.address(name)}:{probe.getsockname()[1]}")
        return found


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    found = Hosts(tmp_path_factory.mktemp("hosts"))
    yield found
    found.remove()


def train(hosts, folder, run, proxies, *settings):
    """What each worker tells."""
    cluster, started = hosts.cluster(), []
    for worker, proxy in enumerate(proxies):
        task = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": worker}}
        environment = os.environ | {"TF_CONFIG": json.dumps(task), "STORAGE_EMULATOR_HOST": proxy.url}
        command = hosts.on(str(worker), [sys.executable, "-c", PROGRAM, folder, run, str(worker), *SMALL, *settings])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        said = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, error) in zip(started, said, strict=True):
        assert process.returncode == 0, error[-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.fixture
def proxies(hosts, gcs_server):
    found = [Proxy(gcs_server, hosts.gateway) for _ in range(2)]
    yield found
    for proxy in found:
        proxy.close()


@pytest.mark.soak
def test_worker_1_continues_without_reading_a_byte(hosts, tmp_path, bucket, proxies):
    write_noise(tmp_path, 32, num_images=9, num_masks=7)
    run = f"{bucket}/run"
    told = train(hosts, str(tmp_path), run, proxies, "initial.steps=3", "alone")
    assert told[0] == ["loaded", "UserError: gs://b/1 is corrupt", "OSError: no answer"]
    assert told[1] == ["UserError: gs://b/1 is corrupt", "RuntimeError: worker 0: no answer"]
    saved = checkpoints.load_newest(run).checkpoint
    size = sum(array.nbytes for part in saved.variables.values() for array in part.values())
    before = [(proxy.sent, len(proxy.lines)) for proxy in proxies]
    assert before[1] == (0, 0)  # of a run that begins it reads nothing either

    told = train(hosts, str(tmp_path), run, proxies, "initial.steps=5")
    assert told == [[3], [3]]  # both restored the checkpoint of step 3, once
    assert (proxies[1].sent, proxies[1].lines) == (0, [])
    assert proxies[0].sent - before[0][0] > size > 10_000
    assert set(saved.variables) == {"model", "optimizer", "ema"}
    for part, arrays in saved.variables.items():
        for worker in range(2):
            with np.load(tmp_path / f"restored-{part}-{worker}.npz") as restored:
                assert set(restored.files) == arrays.keys()
                for name, array in arrays.items():
                    assert restored[name].tobytes() == array.tobytes(), (part, name, worker)
    assert checkpoints.load_newest(run).checkpoint.state["step"] == 5
