"""The page's server: three files, and two things that it does for the page.

    GET  /        the page, page.css, page.js
    POST /view    a picture -> the same as PNG for a browser, of a size that one can paint on
    POST /fill    a picture and its mask -> the file that the inpainting job would write

It keeps nothing: the page sends the picture's file each time, as it is. What cannot be used is answered with the reason
that the job would give in rejects.jsonl. One request is worked on at a time.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from pipelines.retouching import guard
from pipelines.retouching.filling import Retoucher
from pipelines.transforms.rejects import Rejected
from trainer.errors import Outage, TooLarge, UserError
from trainer.storage.names import printable

T = TypeVar("T")
FOLDER = Path(__file__).parent
_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
_QUIET_S = 60.0  # how long a page that sends nothing more keeps others waiting
_CHUNK = 1 << 18
_BAD, _TOO_LARGE, _UNUSABLE = 400, 413, 422  # HTTP status
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Refused(Exception):
    """A request that gets a status and a reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def make_app(retoucher: Retoucher, model: str, names: Collection[str] = ()) -> web.Application:
    """The application.

    Args:
        model: the network's address, to be shown.
        names: see `guard.refuse`.
    """

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if reason := guard.refuse(request.method, request.headers, names):
            return _say(403, reason)
        try:
            return await handler(request)
        except _Refused as error:
            return _say(error.status, str(error))

    async def protect(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(guard.HEADERS)

    app = web.Application(middlewares=[admit])
    app.on_response_prepare.append(protect)
    desk = _Desk(retoucher)
    page = _render(model, retoucher)
    app.router.add_get("/", _answering(page, "text/html"))
    for name, kind in _FILES.items():
        app.router.add_get(f"/{name}", _answering((FOLDER / name).read_text(encoding="utf-8"), kind))
    app.router.add_post("/view", desk.view)
    app.router.add_post("/fill", desk.fill)
    return app


async def serve(app: web.Application, host: str, port: int, ready: Callable[[int], Any]) -> None:
    """Serves until it is cancelled; ``ready`` is called with the port once that is open.

    Raises:
        UserError: the address or the port cannot be had.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {error.strerror or error} (--port 0 takes any that is free)"
        ) from None
    ready(runner.addresses[0][1])
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _render(model: str, retoucher: Retoucher) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html.j2")
    heic = importlib.util.find_spec("pillow_heif") is not None
    return page.render(model=printable(model), mark=guard.MARK, max_bytes=retoucher.max_file_bytes, heic=heic)


def _answering(text: str, kind: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind)

    return answer


def _say(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)


class _Desk:
    """What is done for the page, one request after the other."""

    def __init__(self, retoucher: Retoucher):
        self._retoucher = retoucher
        self._free = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="retoucher")

    async def view(self, request: web.Request) -> web.Response:
        async with self._free:
            ((name, image),) = await self._read(request, "image")
            found = await self._work(self._retoucher.view, name, image)
        size = {"X-Height": str(found.height), "X-Width": str(found.width)}
        return web.Response(body=found.png, content_type="image/png", headers=size)

    async def fill(self, request: web.Request) -> web.Response:
        async with self._free:
            (name, image), (_, mask) = await self._read(request, "image", "mask")
            found = await self._work(self._retoucher.fill, name, image, mask)
        headers = {"X-Hole-Ratio": json.dumps(round(found.hole_ratio, 6))}
        return web.Response(body=found.data, content_type="image/png", headers=headers)

    async def _work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls ``function`` in the one thread that computes."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)
        except Rejected as lost:
            raise _Refused(_UNUSABLE, f"{lost.reject.error} ({lost.reject.stage})") from None
        except (Outage, UserError) as error:
            raise _Refused(500, str(error)) from None

    async def _read(self, request: web.Request, *wanted: str) -> list[tuple[str, bytes]]:
        """The name and the bytes of each file of a form, in the order of ``wanted``."""
        if request.content_type != "multipart/form-data":
            raise _Refused(_BAD, f"expected multipart/form-data. Received {request.content_type}.")
        found: dict[str, tuple[str, bytes]] = {}
        try:
            reader = await request.multipart()
            while (part := await asyncio.wait_for(reader.next(), _QUIET_S)) is not None:
                field = part.name or "" if isinstance(part, BodyPartReader) else ""
                if not isinstance(part, BodyPartReader) or field not in wanted or field in found:
                    raise _Refused(_BAD, f"expected the files {', '.join(wanted)}, once each")
                found[field] = printable(part.filename or field), await self._read_part(part)
        except (ValueError, AssertionError, HttpProcessingError) as error:
            raise _Refused(_BAD, f"expected multipart/form-data: {' '.join(str(error).split())}") from None
        except ConnectionError:
            raise _Refused(_BAD, "the connection was closed") from None  # which nobody will read
        except asyncio.TimeoutError:
            raise _Refused(408, f"nothing more came within {_QUIET_S:.0f} seconds") from None
        if missing := [name for name in wanted if name not in found]:
            raise _Refused(_BAD, f"expected the files {', '.join(wanted)}. {missing[0]} is missing.")
        return [found[name] for name in wanted]

    async def _read_part(self, part: BodyPartReader) -> bytes:
        data, most = bytearray(), self._retoucher.max_file_bytes
        while chunk := await asyncio.wait_for(part.read_chunk(_CHUNK), _QUIET_S):
            data += chunk
            if len(data) > most:
                settings = f"--max-pixels {self._retoucher.settings.max_pixels}"
                error = f"expected a file of {most:,} bytes or fewer ({settings}). Received more."
                raise _Refused(_TOO_LARGE, f"{TooLarge.__name__}: {error} (read)")
        return bytes(data)
