"""Exchange of gradients between two workers over a slow link: in packs during the backward pass, and after it at once.

    python tests/benchmarks/exchange.py [--gbit 1] [--delay-ms 1] [--rounds 7] [--settings KEY=VALUE ...]

As root on Linux. Each worker has a network namespace and a core of its own; the link between them lets through so many
gigabits a second each way, and each packet arrives after a delay. Both take the same steps of a network without
perceptual terms; the ways of exchange take turns within one process. The baseline waits for the backward pass and
exchanges float32 gradients as one tensor, as ``tf.distribute`` does by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _slow_link

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "infra" / "local"))

from hosts import Hosts, choose_prefix  # noqa: E402

SMALL = bool(os.environ.get("SMALL"))
NETWORK = ["unet.filters=4,8", "unet.kernels=5,3"] if SMALL else ["unet.filters=64,128,256,512,512"]
SETTINGS = [*NETWORK, f"unet.image_size={32 if SMALL else 64}", f"global_batch_size={4 if SMALL else 8}"]
SETTINGS += ["precision=float32", "scaling.workers=2"]
BASELINE = "one pack, after the backward pass"
WAYS = {
    BASELINE: None,
    "packs of 8 MB": ["scaling.pack_mb=8"],
    "packs of 2 MB": ["scaling.pack_mb=2"],
    "packs of 8 MB, bfloat16": ["scaling.pack_mb=8", "scaling.exchange_dtype=bfloat16"],
    "no exchange": [],
}
PORT = 20000


def work(settings: list[str], rounds: int) -> None:
    """A worker, in its namespace: times steps and, as number 0, prints the seconds of each way as JSON."""
    import numpy as np
    import tensorflow as tf

    from trainer import presets
    from trainer.training import exchange
    from trainer.training.devices import make_strategy, prepare_devices
    from trainer.training.state.train_state import TrainState
    from trainer.training.step import make_train_step

    prepare_devices("cpu", 1, 1)
    config = presets.override(presets.PRESETS["demo"], settings)
    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    strategy = make_strategy("cpu", 1, 2)
    state = TrainState.build(config, strategy)
    ours, size = exchange.make_sum, config.unet.image_size
    random = np.random.default_rng(rank)
    target = tf.constant(random.random((config.per_worker_batch_size, size, size, 3), np.float32))
    mask = tf.constant((random.random((config.per_worker_batch_size, size, size, 1)) < 0.7).astype(np.float32))
    steps = {}
    for name, change in WAYS.items():
        exchange.make_sum = {
            BASELINE: lambda *_: lambda values, gradients: exchange._reduce([values, *gradients]),
            "no exchange": lambda *_: lambda values, gradients: [values, *gradients],
        }.get(name, ours)
        scaling = presets.override(config, change or []).scaling
        steps[name] = make_train_step(strategy, state.model, state.optimizer, None, config.loss, scaling=scaling)
        steps[name](target, mask)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            for _ in range(1 if SMALL else 3):
                float(step(target, mask).gradient_norm)
            seconds[name].append((time.perf_counter() - begin) / (1 if SMALL else 3))
    if rank == 0:
        print(json.dumps({"parameters": state.model.count_params(), "seconds": seconds}), flush=True)


def make_link(hosts: Hosts, gbit: float, delay: float) -> list[str]:
    """Two hosts on a link of their own; their addresses on it."""
    ends, addresses = [], []
    for number, host in enumerate(("node1", "node2"), start=1):
        hosts.add(host)
        device, address = f"{hosts.bridge}t{number}", f"{hosts.prefix}{200 + number}"
        ends.append(_slow_link.open_tun(device))
        subprocess.run(["ip", "link", "set", device, "netns", f"{hosts.bridge}-{host}"], check=True)
        for command in (
            f"ip address add {address}/30 dev {device}",
            f"ip link set {device} mtu {_slow_link.MTU} up",
            f"tc qdisc add dev {device} root tbf rate {gbit}gbit burst 256kb latency 50ms",
        ):
            subprocess.run(hosts.on(host, command.split()), check=True)
        addresses.append(address)
    _slow_link.connect(*ends, delay)
    return addresses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gbit", type=float, default=1, help="of the link, each way (default: 1)")
    parser.add_argument("--delay-ms", type=float, default=1, help="of each packet (default: 1)")
    parser.add_argument("--rounds", type=int, default=1 if SMALL else 7)
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = [*SETTINGS, *arguments.settings]
    if arguments.worker:
        work(settings, arguments.rounds)
        return
    if os.geteuid() or not shutil.which("tc") or not Path("/dev/net/tun").exists():
        print("skipped: a link of a given speed needs root, the programs ip and tc (iproute2) and /dev/net/tun")
        return
    with tempfile.TemporaryDirectory() as folder:
        hosts = Hosts(folder, f"pcx{os.getpid()}", choose_prefix())
        try:
            hosts.make_bridge()
            addresses = [f"{address}:{PORT}" for address in make_link(hosts, arguments.gbit, arguments.delay_ms / 1e3)]
            started = {}
            for rank, host in enumerate(("node1", "node2")):
                task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
                command = ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[rank]), sys.executable, __file__]
                command += ["--worker", "--rounds", str(arguments.rounds), "--settings", *arguments.settings]
                variables = {"TF_CONFIG": json.dumps(task), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
                started[host] = hosts.launch(host, command, os.environ | variables)
            for host, process in started.items():
                if process.wait():
                    sys.exit(Path(folder, f"{host}.log").read_text()[-3000:])
            told = json.loads(Path(folder, "node1.log").read_text().splitlines()[-1])
        finally:
            hosts.remove()
    median = {name: statistics.median(seconds) for name, seconds in told["seconds"].items()}
    volume = 4 * told["parameters"]
    print(
        f"{told['parameters']:,} parameters, {volume / 1e6:.1f} MB of gradients, {arguments.gbit:g} Gbit/s each way"
        f", {arguments.delay_ms:g} ms"
    )
    for name, seconds in median.items():
        print(f"{name:36}{1e3 * seconds:9.1f} ms a step   {median[BASELINE] / seconds:5.2f} x the first")


if __name__ == "__main__":
    main()
