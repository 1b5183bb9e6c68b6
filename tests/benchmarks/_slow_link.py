"""A link that takes time: what one TUN device is given, the other receives so many seconds later.

For kernels without the queueing discipline ``netem``. Its packets are as large as IPv4 has them, for Python carries
each.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import struct
import threading
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
MTU = 65_000


def open_tun(name: str) -> int:
    """A new TUN device; it is gone once the returned file is closed."""
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return file


def connect(one: int, other: int, seconds: float) -> None:
    """Carries packets both ways between two files of `open_tun`, in threads that end with the process."""
    for source, sink in ((one, other), (other, one)):
        held: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        for work, arguments in ((_receive, (source, held, seconds)), (_send, (sink, held))):
            threading.Thread(target=work, args=arguments, daemon=True).start()


def _receive(source: int, held: queue.SimpleQueue, seconds: float) -> None:
    with contextlib.suppress(OSError):  # the devices go with their namespaces
        while packet := os.read(source, 65_535):
            held.put((time.perf_counter() + seconds, packet))


def _send(sink: int, held: queue.SimpleQueue) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, packet = held.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            os.write(sink, packet)
