"""Who may ask the page's server: this machine's own browser, for the page itself, and no page of another site.

A page of any site can send requests to a server on loopback. What it can not: send one of them with a header of its
own, or with another ``Origin`` than its site's, without asking first. And where it has its own name resolved to
127.0.0.1 once it is loaded (DNS rebinding), requests still carry that name as their ``Host``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

MARK = "X-Pconv-Try"  # a header that the page sends with all that asks for work
# No other site's scripts, styles, fonts or pictures; no frame around the page.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine alone."""
    if host == "localhost":
        return True
    address = _address_of(host)
    return address is not None and address.is_loopback


def refuse(method: str, headers: Mapping[str, str], names: Collection[str]) -> str | None:
    """Why a request is refused, in one line; None if it is not.

    Args:
        method: of the request.
        headers: its headers, whatever the case of their names.
        names: by which this server may be called; empty if only by those of loopback. With names any address will do,
            too, for rebinding takes a name.
    """
    host = headers.get("Host", "")
    name = _name_of(host)
    known = is_loopback(name) or (bool(names) and (name in names or _address_of(name) is not None))
    if not known:
        return f"Host: expected {', '.join(names) or 'localhost or 127.0.0.1'}. Received {host!r}."
    if method in ("GET", "HEAD"):
        return None
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "same-origin")
    if origin is not None and origin.partition("://")[2] != host:
        return f"Origin: expected http://{host}. Received {origin!r}."
    if site != "same-origin" or MARK not in headers:
        return f"expected a request of this server's own page, with {MARK}"
    return None


def _name_of(host: str) -> str:
    """The name or address in a ``Host``, in small letters; empty if it is not of that form."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([0-9a-z.-]+))(?::\d{1,5})?", host.lower())
    return found[1] or found[2] if found else ""


def _address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
