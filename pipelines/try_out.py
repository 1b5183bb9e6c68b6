"""Opens a page to try a network on: drop a picture, paint the hole, see it filled, save it.

    python -m pipelines.try_out --run runs/a
    python -m pipelines.try_out --model exports/step-00000400 --port 8000

The page is served on this machine alone, at the address that is printed, until Ctrl-C. What it saves is, byte for byte,
what pipelines.inpaint writes for that picture and that mask (--hole black --resize-masks); it takes the same files
and refuses the same, with the reason. Nothing is kept, and no other server is asked for anything.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from collections.abc import Sequence

from pipelines.inpaint import add_computing, add_network, check_network, find_network
from trainer import stopping
from trainer.command import ArgumentParser, integer, quiet_imports, run_command
from trainer.errors import UserError

PORT = 7860


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines.try_out", description=__doc__)
    add_network(parser)
    add = parser.add_argument
    add("--port", type=integer(0, 65535), default=PORT, help=f"port of the page (default {PORT}; 0: one that is free)")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1, which no other machine reaches); others need --trusted-network",
    )
    add(
        "--trusted-network",
        action="store_true",
        help="everybody who reaches --host may use this machine's memory and processor: the page asks for no password",
    )
    add_computing(parser)
    return parser


def check_host(ours: argparse.Namespace) -> list[str]:
    """Names that the page may be called by, beside those of loopback. Raises `UserError` for a network of others."""
    from pipelines.retouching.guard import is_loopback

    if is_loopback(ours.host):
        return []
    if not ours.trusted_network:
        raise UserError(
            f"--host {ours.host}: everybody who reaches it could use this machine's memory and processor, for the page "
            "asks for no password; expected --trusted-network if they may, or no --host (ssh -L "
            f"{ours.port}:127.0.0.1:{ours.port} leads here from another machine)"
        )
    print(
        f"warning: everybody who reaches {ours.host} can use the page, which has neither a password nor encryption",
        file=sys.stderr,
    )
    return [name.lower() for name in (ours.host, socket.gethostname())]


def main(argv: Sequence[str]) -> int:
    ours = parser().parse_args(argv)
    check_network(ours)
    names = check_host(ours)
    with quiet_imports():
        from pipelines.retouching import server
        from pipelines.retouching.filling import Retoucher
        from pipelines.transforms.model_handler import FillModelHandler

    network = find_network(ours)
    handler = FillModelHandler(network, None, precision=ours.precision, device=ours.device, window=ours.window)
    handler.prepare()
    app = server.make_app(Retoucher(handler, ours.max_pixels), network.checkpoint.address, names)

    def ready(port: int) -> None:
        host = f"[{ours.host}]" if ":" in ours.host else ours.host
        print(f"http://{host}:{port}/  (Ctrl-C ends it)", flush=True)

    stopping.abandon_threads()  # nobody waits for a picture that is being filled
    asyncio.run(server.serve(app, ours.host, ours.port, ready))
    return 0


if __name__ == "__main__":
    run_command(main)
