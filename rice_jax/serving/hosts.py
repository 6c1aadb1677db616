"""Which hosts requests may name: protects a server without authentication from pages of other sites.

A page can make a browser post to any address, and, with a name that resolves to this machine, read the response (DNS
rebinding). In both cases a header of the request names a host that is not the server's.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import Scope

LOCAL = ("localhost", "127.0.0.1", "::1")
ANY = "*"
UNSPECIFIED = ("0.0.0.0", "::")  # all addresses of the machine


def require_host(scope: Scope, hosts: Collection[str], origins: Collection[str] = ()) -> None:
    """Checks the headers Host and Origin of a request.

    Args:
        scope: of the request.
        hosts: names and addresses of the server; `ANY` turns the check off, and one of `UNSPECIFIED` stands for all IP
            addresses, which no other site can use for its name.
        origins: other sites whose pages may use the server, as browsers write them in the header Origin.

    Raises:
        HTTPException: the request is for another host (400), or comes from a page of another site (403).
    """
    if ANY in hosts:
        return
    headers = Headers(scope=scope)
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not _is_known(_split(f"//{host}")[1], hosts):
        raise HTTPException(400, f"found the host {host[:80]!r}, which is not this server's; --allow_hosts adds hosts")
    if origin is not None and origin not in origins:
        address, name = _split(origin)
        if address != host and name not in hosts:
            detail = (
                f"found a request from {origin[:80]!r}, which is another site; --cors_origin or --allow_hosts adds it"
            )
            raise HTTPException(403, detail)


def _is_known(name: str, hosts: Collection[str]) -> bool:
    if name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return any(host in UNSPECIFIED for host in hosts)


def _split(address: str) -> tuple[str, str]:
    """The host of an address, with and without the port."""
    try:
        parts = urlsplit(address)
        return parts.netloc, (parts.hostname or "").rstrip(".")
    except ValueError:  # e.g. brackets that do not match
        return "", ""
