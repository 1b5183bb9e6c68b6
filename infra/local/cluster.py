"""Runs a Ray cluster on this machine: a head and worker nodes that behave as separate hosts.

    python infra/local/cluster.py start [--nodes 2] [--cpus 1] [--one-address]
    python infra/local/cluster.py run -- python -m trainer.train --address HEAD:6379 ...
    python infra/local/cluster.py kill node1        # lose a host: kill -9 of everything on it
    python infra/local/cluster.py join node1        # bring it back; a new name adds a host
    python infra/local/cluster.py cut node1         # pull its cable; `mend node1` plugs it in again
    python infra/local/cluster.py warn node1        # preemption notice, 30 s ahead; then kill it
    python infra/local/cluster.py status
    python infra/local/cluster.py stop

`run` runs a command on the head, or on the host that --host names. Hosts inherit the environment of the command that
starts them. As root each is a network namespace; otherwise, and with --one-address, they are raylets on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

from hosts import Failure, Hosts, choose_prefix

HEAD, PORT = "head", 6379
_MEMORY = 400_000_000  # bytes of a host's object store: images on their way; training passes arguments and events
_MAX_PATH = 40  # characters of --folder: Ray puts sockets into it, and a socket's path has at most 107
_START_TIMEOUT = 120.0  # seconds
_NOTICE = 30  # seconds from the preemption notice of a spot machine to its end, as on Google Cloud
_ACTIONS = ["start", "run", "kill", "join", "cut", "mend", "warn", "status", "stop"]
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def environment(hosts: Hosts, host: str) -> dict[str, str]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{hosts.folder}/token"}
    image = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_idle_worker_killing_time_threshold_ms": "60000"}
    return os.environ | token | image | {"TMPDIR": f"{hosts.folder}/{host}/tmp"}


def start_ray(hosts: Hosts, names: list[str], cpus: int) -> None:
    """Starts Ray on the named hosts and waits until it runs on all of them."""
    started = {}
    for host in names:
        command = [*_RAY, "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={hosts.address(host)}", f"--temp-dir={hosts.folder}/{host}"]
        command += [f"--object-store-memory={_MEMORY}"]
        if host == HEAD:
            # No dashboard, hence no port for it; no cores, so that training runs on the nodes.
            command += ["--head", f"--port={PORT}", "--include-dashboard=false", "--num-cpus=0"]
        else:
            command += [f"--address={hosts.address(HEAD)}:{PORT}", f"--num-cpus={cpus}"]
        started[host] = hosts.launch(host, command, environment(hosts, host))
    deadline = time.monotonic() + _START_TIMEOUT
    for host, process in started.items():
        log = Path(hosts.folder, f"{host}.log")
        while "Ray runtime started" not in (said := log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"{host}: Ray did not start:\n{said[-2000:]}")
            time.sleep(0.1)


def start(folder: str, nodes: int, cpus: int, one_address: bool) -> Hosts:
    if os.path.exists(folder):
        raise Failure(
            f"--folder: {folder} exists already; stop the cluster that was started there, or choose another folder"
        )
    if len(folder) > _MAX_PATH:
        raise Failure(f"--folder: expected a path of up to {_MAX_PATH} characters. Received {folder}.")
    apart = not one_address and os.geteuid() == 0 and shutil.which("ip") is not None
    # Linux limits interface names to 15 characters; a number follows.
    bridge = f"pc{zlib.crc32(folder.encode()):08x}" if apart else None
    hosts = Hosts(folder, bridge, choose_prefix() if bridge else "")
    os.makedirs(folder)
    try:
        hosts.save()
        with os.fdopen(os.open(f"{folder}/token", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        hosts.make_bridge()
        names = [f"node{number}" for number in range(1, nodes + 1)]
        for host in (HEAD, *names):
            hosts.add(host)
        start_ray(hosts, [HEAD], cpus)
        start_ray(hosts, names, cpus)
    except BaseException:
        stop(hosts)
        raise
    return hosts


def stop(hosts: Hosts) -> None:
    hosts.remove()
    shutil.rmtree(hosts.folder)


def join(hosts: Hosts, names: list[str], cpus: int) -> None:
    for host in names:
        if host not in hosts.numbers:
            hosts.add(host)
        if hosts.processes(host):
            raise Failure(f"join: {host} is up already; kill it first")
    start_ray(hosts, names, cpus)


def node_id(hosts: Hosts, host: str) -> str:
    """Ray's id of the node on a host; asked on the head, as Ray may place a program on the host on another node."""
    code = (
        "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
        "print(*(n['NodeID'] for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] == sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, f"{hosts.address(HEAD)}:{PORT}", hosts.address(host)]
    done = subprocess.run(hosts.on(HEAD, command), env=environment(hosts, HEAD), capture_output=True, text=True)
    found = done.stdout.split()
    if done.returncode or len(found) != 1:
        raise Failure(f"{host}: expected one Ray node. Received {found}. {done.stderr}")
    return found[0]


def warn(hosts: Hosts, host: str) -> None:
    if not hosts.bridge:  # the node is found by its address
        raise Failure("warn: needs hosts with their own addresses; these share 127.0.0.1")
    command = [*_RAY, "drain-node", f"--address={hosts.address(HEAD)}:{PORT}", f"--node-id={node_id(hosts, host)}"]
    command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=warn"]
    command += [f"--deadline-remaining-seconds={_NOTICE}"]
    done = subprocess.run(hosts.on(HEAD, command), env=environment(hosts, HEAD), capture_output=True, text=True)
    if done.returncode:
        raise Failure(f"warn: {done.stdout}{done.stderr}")


def describe(hosts: Hosts) -> str:
    lines = [f"--address {hosts.address(HEAD)}:{PORT}"]
    if hosts.bridge:
        lines.append(f"the hosts reach this machine at {hosts.prefix}1")
    for host in hosts.numbers:
        count = len(hosts.processes(host))
        lines.append(f"{host:<12} {hosts.address(host):<15} {f'{count} processes' if count else 'down'}")
    return "\n".join(lines)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parsed options, and the command after ``--``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=_ACTIONS)
    parser.add_argument("hosts", nargs="*", metavar="HOST", help="for kill, join, cut, mend and warn")
    parser.add_argument(
        "--folder", default="/tmp/pconv-cluster", help="folder for all temporary files (default: %(default)s)"
    )
    parser.add_argument("--nodes", type=int, default=2, help="hosts besides the head (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=1, help="cores per node (default: %(default)s)")
    parser.add_argument("--one-address", action="store_true", help="no network namespaces")
    parser.add_argument("--host", default=HEAD, help="host that run runs on (default: %(default)s)")
    end = argv.index("--") if "--" in argv else len(argv)
    return parser.parse_intermixed_args(argv[:end]), argv[end + 1 :]


def main(argv: list[str]) -> int:
    arguments, command = parse(argv)
    action, names, folder = arguments.action, arguments.hosts, os.path.abspath(arguments.folder)
    if action == "start":
        print(describe(start(folder, arguments.nodes, arguments.cpus, arguments.one_address)))
        return 0
    hosts = Hosts.load(folder)
    if action == "status":
        print(describe(hosts))
    elif action == "stop":
        stop(hosts)
    elif action == "run":
        if not command or arguments.host not in hosts.numbers:
            raise Failure(f"run: expected --host, one of {sorted(hosts.numbers)}, and a command after --.")
        os.execvpe("env", ["env", *hosts.on(arguments.host, command)], environment(hosts, arguments.host))
    elif not names or not all(re.fullmatch("[a-z0-9]{1,12}", host) for host in names):
        raise Failure(f"{action}: expected host names of 1 to 12 characters a-z, 0-9. Received {names}.")
    elif action == "join":
        join(hosts, names, arguments.cpus)
    elif unknown := sorted(set(names) - hosts.numbers.keys()):
        raise Failure(f"{action}: expected some of {sorted(hosts.numbers)}. Received {unknown[0]}.")
    else:
        for host in names:
            if action == "kill":
                hosts.kill(host)
            elif action == "warn":
                warn(hosts, host)
            else:
                hosts.plug(host, "down" if action == "cut" else "up")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
