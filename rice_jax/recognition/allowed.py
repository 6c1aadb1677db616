"""Which sources a server may follow, and access to those of the web: only to addresses that its operator has named.

Whoever may ask a server to follow an address could otherwise reach what only the server reaches: files, and services of
its own network.
"""

import dataclasses
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Timeout, Url, parse_url

from rice_jax.types import DataError

PORTS = {"http": 80, "https": 443, "rtmp": 1935, "rtmps": 443, "rtsp": 554, "rtsps": 322}  # usual ones, by scheme
WEB = ("http", "https")
SECONDS = 20.0  # for a connection, and without a byte
MAX_REDIRECTS = 5
# FFmpeg's names. Formats that refer to further files or addresses are missing, but for HLS, which opens them by
# `Web.open`; so are all protocols of FFmpeg itself for formats of the web and of files.
CONTAINERS = "rtsp,mpegts,mpeg,flv,live_flv,matroska,webm,mov,mp4,avi,ogg,asf"
FORMATS = f"hls,{CONTAINERS},aac,ac3,eac3,mp3,webvtt"  # of the web; the last ones are parts of HLS
PROTOCOLS = {"rtmp": "rtmp,tcp", "rtmps": "rtmps,tls,tcp", "rtsp": "rtsp,rtp,tcp", "rtsps": "rtsps,rtp,tls,tcp"}
HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_-][a-z0-9_.-]*)(:(?P<port>\d{1,5}))?")


class SourceRefused(DataError):
    """A source that is not allowed."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What may be followed.

    Attributes:
        hosts: names or IP addresses, each with the port; None = the usual port of any scheme.
        paths: files, cameras, and directories, of whose files each is allowed.
    """

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    paths: tuple[Path, ...] = ()

    def require(self, address: str) -> None:
        """Checks a URL or path.

        Raises:
            SourceRefused: it is not allowed; the message tells why, without its user, password, and query.
        """
        if "://" in address:
            self._require_url(address)
        else:
            self._require_path(Path(address))

    def _require_url(self, address: str) -> None:
        url = _parse(address)
        if url.scheme not in PORTS:
            expected = f"{', '.join(f'{scheme}://' for scheme in PORTS)}, or the path of a file"
            raise SourceRefused(f"found the scheme {str(url.scheme)[:20]!r}, expected {expected}")
        host, usual = (url.host or "").lower().rstrip("."), PORTS[url.scheme]
        port = url.port or usual
        if (host, port) not in self.hosts and not (port == usual and (host, None) in self.hosts):
            raise SourceRefused(f"{host[:200]}:{port} is no source of this server; --allow_sources adds it")

    def _require_path(self, path: Path) -> None:
        try:
            found = path.resolve()
            allowed = found in self.paths or (any(own in found.parents for own in self.paths) and _may_be_file(found))
        except (OSError, ValueError):  # its name is too long, or has a null character
            allowed = False
        if not path.is_absolute() or not allowed:
            raise SourceRefused(f"{str(path)[:200]!r} is no source of this server; --allow_sources adds it")


def parse_allowed(texts: Iterable[str]) -> Allowed:
    """What may be followed, as the operator writes it: HOST, HOST:PORT, or an absolute path.

    Raises:
        DataError: a text is neither.
    """
    hosts, paths = set(), []
    for text in texts:
        found = HOST.fullmatch(text.lower())
        if text.startswith("/"):
            paths.append(Path(text).resolve())
        elif found and int(found["port"] or 1) in range(1, 65536):
            hosts.add((found["host"].rstrip("."), int(found["port"]) if found["port"] else None))
        else:
            raise DataError(f"found {text!r}, expected HOST, HOST:PORT, or an absolute path, without scheme or *")
    return Allowed(frozenset(hosts), tuple(paths))


class Web:
    """Opens what an address of the web refers to: playlists, segments, and keys, through redirects."""

    def __init__(self, allowed: Allowed):
        """Starts without connections."""
        self._allowed = allowed
        self._opened: dict[str, urllib3.BaseHTTPResponse] = {}
        self._pool = urllib3.PoolManager(timeout=Timeout(connect=SECONDS, read=SECONDS), retries=False)

    def final(self, address: str) -> str:
        """The address that another one redirects to, to which those in a playlist are relative; it is open then."""
        answer, found = self._ask(address, {})
        self._opened[found] = answer
        return found

    def open(self, address: str, flags: int, options: Mapping[str, str]) -> "_Body":
        """Opens an address for FFmpeg, as the argument `io_open` of `av.open`.

        Raises:
            OSError: it cannot be read.
            SourceRefused: it, or what it redirects to, is not allowed.
        """
        if address.startswith("crypto"):
            raise SourceRefused("the segments are encrypted (AES-128), which the server does not follow")
        if address in self._opened:
            return _Body(self._opened.pop(address))
        return _Body(self._ask(address, options)[0])

    def _ask(self, address: str, options: Mapping[str, str]) -> tuple[urllib3.BaseHTTPResponse, str]:
        for _ in range(1 + MAX_REDIRECTS):
            self._allowed.require(address)
            url = _parse(address)
            if url.scheme not in WEB:
                raise SourceRefused(
                    f"found the scheme {url.scheme!r} in a playlist or redirect, expected http or https"
                )
            headers = urllib3.make_headers(basic_auth=url.auth) if url.auth else {}
            if "end_offset" in options:
                headers["Range"] = f"bytes={options.get('offset', 0)}-{int(options['end_offset']) - 1}"
            bare = url._replace(auth=None, fragment=None).url
            try:
                answer = self._pool.request("GET", bare, headers=headers, preload_content=False, redirect=False)
            except HTTPError as error:
                raise OSError(0, f"cannot be reached ({type(error).__name__})") from error
            location = answer.get_redirect_location()
            if not location:
                if answer.status not in (200, 206):
                    answer.close()
                    raise OSError(0, f"server returned {answer.status}")
                return answer, address
            answer.close()
            address = urljoin(address, location)
        raise OSError(0, f"redirects more than {MAX_REDIRECTS} times")


class _Body:
    """The body of an answer, as FFmpeg reads it: whatever has arrived."""

    def __init__(self, answer: urllib3.BaseHTTPResponse):
        self._answer = answer

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        try:
            return self._answer.read1(size)
        except HTTPError as error:
            raise OSError(0, f"the connection is lost ({type(error).__name__})") from error

    def close(self) -> None:
        """Closes the connection."""
        self._answer.close()


def _may_be_file(path: Path) -> bool:
    """Whether a path is that of a file, or free for one."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


def _parse(address: str) -> Url:
    """Takes a URL apart; what libraries take apart in different ways is refused."""
    if not re.fullmatch(r"[!-~]+", address) or "\\" in address or address.partition("://")[2].count("@") > 1:
        raise SourceRefused("found a space, a backslash, several @, or a character that is not ASCII in the URL")
    try:
        return parse_url(address)
    except LocationParseError as error:
        raise SourceRefused(f"found a URL that is malformed: {error}") from error
